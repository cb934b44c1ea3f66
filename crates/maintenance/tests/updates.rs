//! Update files: the examples are sound, the bad ones are refused with place, reason and way out.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use fermata_maintenance::update::{Change, Section, Update};
use fermata_model::Mechanism;

fn examples() -> impl Iterator<Item = (String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/updates");
    std::fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.display().to_string(), std::fs::read_to_string(path).unwrap())
    })
}

#[test]
fn the_examples_are_sound() {
    let mut mechanisms = Vec::new();
    for (path, text) in examples() {
        let update = Update::from_toml(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
        let again: Update = serde_json::from_str(&serde_json::to_string(&update).unwrap()).unwrap();
        assert_eq!(again, update, "{path} survives the journal");
        mechanisms.push(update.change.mechanism());
    }
    mechanisms.sort_unstable();
    assert_eq!(mechanisms, [Mechanism::None, Mechanism::Hold, Mechanism::Swap, Mechanism::Kexec]);
}

#[test]
fn the_reference_in_the_book_shows_sound_files() {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/updates.md");
    let text = std::fs::read_to_string(book).unwrap();
    let blocks: Vec<&str> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        Update::from_toml(block).unwrap_or_else(|e| panic!("{e}:\n{block}"));
    }
}

#[test]
fn one_byte_more_is_another_update() {
    let (_, text) = examples().next().unwrap();
    let (first, second) = (Update::from_toml(&text).unwrap(), Update::from_toml(&format!("{text}\n")).unwrap());
    assert_eq!(first.id, second.id);
    assert_ne!(first.digest, second.digest);
}

#[test]
fn defaults_are_those_of_the_reference() {
    let update = Update::from_toml("id = \"q\"\ntitle = \"Q\"\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n").unwrap();
    assert_eq!((update.notice, update.parallelism, update.harshest), (Duration::from_secs(900), 4, Mechanism::Swap));
    assert_eq!(update.change, Change::Vmm { version: "11.1".parse().unwrap(), binary: None, again: false });
    let service = "id = \"s\"\ntitle = \"S\"\nkind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 10\n\
        [[undo]]\ncommand = [\"/bin/b\"]\n";
    let service = Update::from_toml(service).unwrap();
    assert_eq!(service.longest(Section::Undo), Duration::from_secs(5));
}

/// A sound file to spoil.
const HEAD: &str = "id = \"x\"\ntitle = \"X\"\n";
const SERVICE: &str =
    "kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 100\n[[undo]]\ncommand = [\"/bin/b\"]\n";

fn refusal(text: &str) -> String {
    match Update::from_toml(&format!("{HEAD}{text}")) {
        Ok(update) => panic!("accepted: {update:#?}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn bad_files_are_refused_with_place_reason_and_way_out() {
    Update::from_toml(&format!("{HEAD}{SERVICE}")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("kind = \"magic\"\n[change]\n", &["kind", "magic", "\"vmm\""]),
        ("kind = \"vmm\"\nspeed = 3\n[change]\nvmm = \"11.1\"\n", &["speed"]),
        ("kind = \"vmm\"\n[change]\n", &["change.vmm", "missing"]),
        ("kind = \"vmm\"\n[change]\nvmm = \"11\"\n", &["MAJOR.MINOR"]),
        ("kind = \"vmm\"\n[change]\nvmm = \"11.1\"\nbinary = \"bin/qemu\"\n", &["change.binary", "not absolute"]),
        ("kind = \"vmm\"\n[change]\nvmm = \"11.1\"\ncommand = [\"/bin/a\"]\n", &["change.command", "means nothing"]),
        ("kind = \"kernel\"\n[change]\n", &["change.image", "missing"]),
        ("kind = \"kernel\"\n[change]\nimage = \"vmlinuz\"\n", &["change.image", "not absolute"]),
        ("kind = \"service\"\n[change]\ntimeout_ms = 5\n", &["change.command", "missing"]),
        ("kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\n", &["change.timeout_ms", "missing"]),
        ("kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 100\n", &["undo", "[[undo]]"]),
        ("kind = \"service\"\n[change]\ncommand = []\ntimeout_ms = 5\n", &["change.command", "empty"]),
        ("kind = \"service\"\n[change]\ncommand = [\"a\"]\ntimeout_ms = 5\n", &["change.command", "`a`", "whole path"]),
        (
            "kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\nshell = \"b\"\ntimeout_ms = 5\n",
            &["change", "exactly one"],
        ),
        ("kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 0\n", &["change.timeout_ms", "0 ms"]),
        ("kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 30000\n", &["change.timeout_ms", "29999"]),
        (
            "kind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 20000\n[[undo]]\ncommand = [\"/bin/b\"]\ntimeout_ms = 10000\n",
            &["change.timeout_ms + undo", "30000 ms", "shorten"],
        ),
        ("kind = \"package\"\n[change]\nshell = \" \"\n", &["change.command", "empty"]),
        ("kind = \"package\"\nharshest = \"swap\"\nnotice_s = 99999999\n[change]\nshell = \"a\"\n", &["notice_s"]),
        ("kind = \"package\"\nparallelism = 0\n[change]\nshell = \"a\"\n", &["parallelism", "1 to 256"]),
        ("kind = \"vmm\"\nharshest = \"hold\"\n[change]\nvmm = \"11.1\"\n", &["harshest", "swap"]),
        ("kind = \"kernel\"\non_refusal = \"skip\"\n[change]\nimage = \"/k\"\n", &["on_refusal", "deny"]),
        ("kind = \"kernel\"\n[vm.db]\non_refusal = \"shutdown\"\n[change]\nimage = \"/k\"\n", &["vm.db", "reboot"]),
        (
            "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n[[verify]]\ncommand = [\"/bin/a\"]\ntimeout_ms = 99999999999\n",
            &["verify 1"],
        ),
        ("kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n[[prepare]]\nname = \"nothing\"\n", &["prepare 1", "exactly one"]),
        ("kind = \"package\"\n[change]\nshell = \"a\\u0000b\"\n", &["change", "NUL"]),
    ];
    for (text, expected) in cases {
        let message = refusal(text);
        for part in *expected {
            assert!(message.contains(part), "`{part}` is not in: {message}\nfor\n{text}");
        }
    }
    let bad_title = Update::from_toml("id = \"x\"\ntitle = \"\"\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n");
    assert!(bad_title.unwrap_err().to_string().starts_with("title"));
    let bad_id = Update::from_toml("id = \"../x\"\ntitle = \"X\"\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n");
    assert!(bad_id.unwrap_err().to_string().contains("update id"));
}
