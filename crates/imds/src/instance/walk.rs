//! Paths below `/metadata/instance`, and the two formats.

use serde_json::Value;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// An object or a list.
    Node(&'a Value),
    /// A value.
    Leaf(&'a Value),
}

/// Follows `segments` from `root`: member names (of the exact case first, then of any), or indices of a list.
#[must_use]
pub fn walk<'a>(root: &'a Value, segments: &[&str]) -> Option<Found<'a>> {
    let mut at = root;
    for segment in segments {
        at = match at {
            Value::Object(members) => members.get(*segment).or_else(|| {
                members.iter().find(|(name, _)| name.eq_ignore_ascii_case(segment)).map(|(_, value)| value)
            })?,
            Value::Array(elements) => {
                let digits = !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit());
                elements.get(digits.then(|| segment.parse::<usize>().ok()).flatten()?)?
            }
            _ => return None,
        };
    }
    Some(match at {
        Value::Object(_) | Value::Array(_) => Found::Node(at),
        leaf => Found::Leaf(leaf),
    })
}

/// The text form: a leaf's bare value; a node's child names, one per line, those of nodes with `/`.
#[must_use]
pub fn text(found: &Found<'_>) -> String {
    let entry = |name: String, value: &Value| if value.is_object() || value.is_array() { name + "/" } else { name };
    let lines: Vec<String> = match found {
        Found::Leaf(Value::String(value)) => return value.clone(),
        Found::Leaf(other) => return other.to_string(),
        Found::Node(Value::Object(members)) => members.iter().map(|(name, v)| entry(name.clone(), v)).collect(),
        Found::Node(Value::Array(elements)) => {
            elements.iter().enumerate().map(|(index, v)| entry(index.to_string(), v)).collect()
        }
        Found::Node(_) => Vec::new(),
    };
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rule_04_keys_match_exactly_first_then_in_any_case() {
        let root = json!({ "a": "small", "A": "large", "list": [{ "x": "1" }] });
        let leaf = |path: &[&str]| match walk(&root, path) {
            Some(Found::Leaf(value)) => value.as_str().map(str::to_owned),
            _ => None,
        };
        assert_eq!(leaf(&["A"]).unwrap(), "large");
        assert_eq!(leaf(&["LIST", "0", "X"]).unwrap(), "1");
        for missing in [["list", "1"], ["list", "+0"], ["list", "x"], ["a", "b"], ["b", "c"]] {
            assert_eq!(walk(&root, &missing), None, "{missing:?}");
        }
    }

    #[test]
    fn rule_27_text_of_a_node_lists_its_children() {
        let root = json!({ "compute": { "name": "a" }, "leaf": "", "list": [{}, "x"] });
        assert_eq!(text(&walk(&root, &[]).unwrap()), "compute/\nleaf\nlist/");
        assert_eq!(text(&walk(&root, &["list"]).unwrap()), "0/\n1");
        assert_eq!(text(&walk(&root, &["leaf"]).unwrap()), "");
    }
}
