//! The page of rules cannot rot: every rule has a row, every test it names exists.
#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

use std::collections::BTreeSet;
use std::path::Path;

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_rule_has_a_row_and_every_test_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap();
    let mut code = String::new();
    for crate_name in ["events", "imds", "fermata", "lab"] {
        for folder in ["src", "tests"] {
            sources(&root.join("crates").join(crate_name).join(folder), &mut code);
        }
    }
    let page = std::fs::read_to_string(root.join("docs/src/imds-rules.md")).unwrap();
    let mut rules = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let tests: Vec<&str> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
        if let Ok(number) = cells[0].parse::<u32>() {
            rules.insert(number);
            let own = format!("{number:02}");
            assert!(tests.iter().any(|t| t.contains(&format!("_{own}_"))), "rule {number} has no test of its number");
        }
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "`{test}` does not exist");
        }
    }
    assert_eq!(rules, (1..=48).collect());
}
