//! Comments say why; they keep no old code and promise no later work.

use crate::source::{Finding, Source, words};

/// In two halves, so that this file passes.
const LATER: [(&str, &str); 3] = [("TO", "DO"), ("FIX", "ME"), ("XX", "X")];
const UNDONE: [&str; 2] = ["todo!", "unimplemented!"];

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(|s| [later(s), old_code(s)].concat()).collect()
}

fn later(source: &Source) -> Vec<Finding> {
    let marks = LATER.map(|(a, b)| format!("{a}{b}"));
    let in_comments = marks.iter().flat_map(|m| words(&source.comments, m));
    let in_code = UNDONE.iter().flat_map(|m| words(&source.code, m));
    let found = in_comments.chain(in_code);
    found.map(|at| source.finding(at, "promises later work: do it now, or write an issue")).collect()
}

/// A plain comment that reads as code does.
fn old_code(source: &Source) -> Vec<Finding> {
    let mut at = 0;
    let mut findings = Vec::new();
    for line in source.comments.split_inclusive('\n') {
        let text = line.trim().strip_prefix("//").filter(|t| !t.starts_with(['/', '!']));
        if text.is_some_and(|t| reads_as_code(t.trim())) {
            findings.push(source.finding(at, "this comment is code: delete it, the history keeps it"));
        }
        at += line.len();
    }
    findings
}

fn reads_as_code(text: &str) -> bool {
    const ENDS: [&str; 5] = [";", "{", "}", "},", ")?"];
    const STARTS: [&str; 6] = ["#[", "let ", "pub fn ", "use crate", "use std", "} else"];
    // A whole sentence in between, such as "let the loop see it.", is prose.
    let prose = text.ends_with('.') || text.ends_with(':') || text.contains('`');
    !prose
        && (ENDS.iter().any(|e| text.ends_with(e))
            || STARTS.iter().any(|s| text.starts_with(s)) && text.contains(['=', '(', '[', ':']))
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn found(text: &str) -> usize {
        check(&planted(&[("a.rs", text)])).len()
    }

    #[test]
    fn promises_of_later_work_are_found() {
        assert_eq!(found(&format!("// {}{}: more", "TO", "DO")), 1);
        assert_eq!(found(&format!("/// {}{} this\nfn f() {{ todo!() }}", "FIX", "ME")), 2);
        assert_eq!(found("// a todo list\nlet text = \"FIXME\";"), 0);
    }

    #[test]
    fn code_in_comments_is_found() {
        for code in ["// let a = 1;", "    // self.run();", "// if a {", "// }", "// #[test]", "// use crate::a::b"] {
            assert_eq!(found(code), 1, "{code}");
        }
        for prose in [
            "// let the loop see it.",
            "// The rest; see `a();`",
            "/// let a = 1;",
            "// First, then:",
            "let a = 1; // one",
        ] {
            assert_eq!(found(prose), 0, "{prose}");
        }
    }
}
