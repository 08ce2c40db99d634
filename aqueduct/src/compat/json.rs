//! JSON as other libraries write it.

/// The text without the blanks between its parts.
pub(super) fn compact(json: &str) -> String {
    let (mut out, mut inside, mut escaped) = (String::with_capacity(json.len()), false, false);
    for c in json.chars() {
        if inside {
            (inside, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            inside = c == '"';
        }
        out.push(c);
    }
    out
}

/// What Go's encoder escapes beside what JSON asks for: all of it stands inside strings.
pub(super) fn as_go(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_go_but_those_of_strings() {
        let json = "{ \"a b\" : [ 1 ,\n2.50 ], \"q\\\" \\\\\": \" \\\" \" }";
        assert_eq!(compact(json), "{\"a b\":[1,2.50],\"q\\\" \\\\\":\" \\\" \"}");
    }

    #[test]
    fn go_escapes_for_html() {
        assert_eq!(as_go("\"<a&b>\u{2028}é\""), r#""\u003ca\u0026b\u003e\u2028é""#);
    }
}
