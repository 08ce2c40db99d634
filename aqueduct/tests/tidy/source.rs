//! Reads Rust source well enough to judge its style: code apart from comments, strings and tests.

use std::path::{Path, PathBuf};

/// A source file.
pub(crate) struct Source {
    /// Its path below the folder that was read, with `/`.
    pub(crate) path: String,
    /// Its code: comments and the insides of strings are blank, everything else stands where it stood.
    pub(crate) code: String,
    /// Its code without tests.
    pub(crate) live: String,
    /// Its comments: everything else is blank.
    pub(crate) comments: String,
}

/// Something against the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// File and line.
    pub(crate) at: String,
    /// What is wrong, and what to do about it.
    pub(crate) what: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (code, comments) = separate(text);
        let live = without_tests(&code);
        Self { path: path.to_owned(), code, live, comments }
    }

    /// A finding at an offset into `code`, `live` or `comments`.
    pub(crate) fn finding(&self, offset: usize, what: impl Into<String>) -> Finding {
        Finding { at: format!("{}:{}", self.path, line_of(&self.code, offset)), what: what.into() }
    }

    /// The lines of code, tests not counted.
    pub(crate) fn live_lines(&self) -> usize {
        self.live.lines().filter(|l| !l.trim().is_empty()).count()
    }

    /// The module that the file is: `broker/memory.rs` is `[broker, memory]`, `lib.rs` is `[]`.
    pub(crate) fn module(&self) -> Vec<&str> {
        let path = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut names: Vec<_> = path.split('/').collect();
        if matches!(names.last(), Some(&("mod" | "lib" | "main"))) {
            names.pop();
        }
        names
    }

    /// True for a file that lists other modules: `lib.rs` and `mod.rs`.
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.path.rsplit('/').next(), Some("lib.rs" | "mod.rs"))
    }
}

/// The number of the line that an offset is in, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// All Rust files below a folder, in the order of their paths. Files that only tests are made of have no live code.
pub(crate) fn read(folder: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    walk(folder, &mut paths);
    let name = |p: &PathBuf| p.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/");
    let mut sources: Vec<_> =
        paths.iter().map(|p| Source::new(&name(p), &std::fs::read_to_string(p).unwrap())).collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    blank_test_files(&mut sources);
    sources
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// A file that is declared as `#[cfg(test)] mod name;` is a test from its first line to its last.
pub(crate) fn blank_test_files(sources: &mut [Source]) {
    let mut tests = Vec::new();
    for source in &*sources {
        let module = source.module().join("/");
        let above = if module.is_empty() { String::new() } else { format!("{module}/") };
        for (at, _) in source.code.match_indices(CFG_TEST) {
            let item = source.code[at + CFG_TEST.len()..].trim_start();
            if let Some(name) = item.split(';').next().and_then(|i| i.split("mod ").nth(1)) {
                tests.push(format!("{above}{}", name.trim()));
            }
        }
    }
    for source in sources.iter_mut() {
        let module = source.module().join("/");
        if tests.iter().any(|t| module == *t || module.starts_with(&format!("{t}/"))) {
            source.live = blank(&source.live);
        }
    }
}

const CFG_TEST: &str = "#[cfg(test)]";

/// The code with every item under `#[cfg(test)]` blank.
fn without_tests(code: &str) -> String {
    let mut live = code.to_owned();
    let mut from = 0;
    while let Some(at) = live[from..].find(CFG_TEST).map(|i| from + i) {
        let end = under_attribute_end(&live, at + CFG_TEST.len());
        let gap = blank(&live[at..end]);
        live.replace_range(at..end, &gap);
        from = end;
    }
    live
}

/// Where that ends which an attribute before `from` is about: an item, a statement, a field or a match arm.
fn under_attribute_end(code: &str, from: usize) -> usize {
    let text = code[from..].trim_start();
    let start = code.len() - text.len();
    let (mut depth, mut end) = (0_i32, code.len());
    let until = match identifier(text) {
        "let" => ';',
        word if code[start + word.len()..].trim_start().starts_with(':') => ',',
        _ => return item_end(code, from),
    };
    for (i, c) in text.char_indices() {
        depth += i32::from(matches!(c, '(' | '[' | '{')) - i32::from(matches!(c, ')' | ']' | '}'));
        if depth < 0 || depth == 0 && c == until {
            end = start + i + usize::from(depth == 0);
            break;
        }
    }
    end
}

/// Where an item ends that begins at or after `from`: behind its block, or its semicolon.
pub(crate) fn item_end(code: &str, from: usize) -> usize {
    match block_start(code, from) {
        Some(open) if code[open..].starts_with('{') => block_end(code, open),
        Some(semicolon) => semicolon + 1,
        None => code.len(),
    }
}

/// The first `{` or `;` after `from` that is in no round or square brackets.
pub(crate) fn block_start(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (i, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' | ';' if depth <= 0 => return Some(from + i),
            _ => {}
        }
    }
    None
}

/// Behind the brace that closes the one at `open`.
pub(crate) fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_i32;
    for (i, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return open + i + 1;
        }
    }
    code.len()
}

/// The same lines with nothing on them.
pub(crate) fn blank(text: &str) -> String {
    text.chars().flat_map(|c| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8())).collect()
}

/// Where `word` stands in `code` as a whole word.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(i, _)| i).filter(move |&i| {
        let before = code[..i].chars().next_back().is_some_and(part) && word.starts_with(part);
        let after = code[i + word.len()..].chars().next().is_some_and(part) && word.ends_with(part);
        !before && !after
    })
}

/// The identifier that `text` begins with, after white space.
pub(crate) fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// How the sources of a test case look to a rule.
pub(crate) fn planted(files: &[(&str, &str)]) -> Vec<Source> {
    let mut sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    blank_test_files(&mut sources);
    sources
}

/// Splits a text into code and comments, each with the other (and the insides of strings) blank.
fn separate(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::with_capacity(text.len()), String::with_capacity(text.len()));
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let (kind, len) = piece(rest, before);
        let (now, later) = rest.split_at(len);
        match kind {
            Piece::Code => {
                code.push_str(now);
                comments.push_str(&blank(now));
            }
            Piece::Comment => {
                code.push_str(&blank(now));
                comments.push_str(now);
            }
            Piece::Quoted => {
                let inner = now.len() - c.len_utf8();
                code.push(c);
                code.push_str(&blank(&now[c.len_utf8()..inner.max(c.len_utf8())]));
                code.push_str(&now[inner.max(c.len_utf8())..]);
                comments.push_str(&blank(now));
            }
        }
        before = now.chars().next_back().unwrap_or(' ');
        rest = later;
    }
    (code, comments)
}

enum Piece {
    Code,
    Comment,
    Quoted,
}

/// What a text begins with, and how long that is.
fn piece(text: &str, before: char) -> (Piece, usize) {
    if text.starts_with("//") {
        return (Piece::Comment, text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return (Piece::Comment, block_comment(text));
    }
    if text.starts_with('"') {
        return (Piece::Quoted, quoted(text, '"'));
    }
    if let Some(len) = raw_string(text, before) {
        return (Piece::Quoted, len);
    }
    let mut chars = text.chars();
    let first = chars.next().map_or(1, char::len_utf8);
    let (second, third) = (chars.next(), chars.next());
    if text.starts_with('\'') && (second == Some('\\') || third == Some('\'')) {
        return (Piece::Quoted, quoted(text, '\''));
    }
    (Piece::Code, first)
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str, before: char) -> Option<usize> {
    if before.is_alphanumeric() && before != 'b' && before != 'c' || before == '_' {
        return None;
    }
    let hashes = text.strip_prefix('r')?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    hashes[count..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(count));
    let open = 1 + count + 1;
    Some(text[open..].find(&end).map_or(text.len(), |i| open + i + end.len()))
}

mod lints {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "let a = \"// x {\"; // y }\nlet b = r#\"\"z\"#; /* é /* { */ */ let c = '{'; let d: &'a str;";
        let source = Source::new("a.rs", text);
        assert_eq!(source.code.len(), text.len());
        assert!(!source.code.contains(['x', 'y', 'z', '{', '}', 'é']), "{}", source.code);
        assert!(source.code.contains("&'a str") && source.comments.contains("y }"));
        assert_eq!(line_of(&source.code, source.code.find("let b").unwrap()), 2);
    }

    #[test]
    fn tests_are_no_live_code() {
        let files = [
            (
                "lib.rs",
                "mod a;\n#[cfg(test)]\nmod b_tests;\nfn live() {}\n#[cfg(test)]\nmod tests { fn t() { {} } }\nfn more() {}",
            ),
            ("b_tests.rs", "fn t() {}"),
        ];
        let sources = planted(&files);
        assert!(
            sources[0].live.contains("live") && sources[0].live.contains("more") && !sources[0].live.contains("t()")
        );
        assert_eq!((sources[0].live_lines(), sources[1].live_lines()), (3, 0));
    }

    #[test]
    fn fields_and_statements_of_tests_are_no_live_code() {
        let text =
            "let a = A {\n#[cfg(test)]\nb: f(c, d),\ne: None };\n#[cfg(test)]\nlet g = if h { i } else { j };\nk();";
        let live = Source::new("a.rs", text).live;
        assert_eq!(
            live.split_whitespace().collect::<Vec<_>>(),
            ["let", "a", "=", "A", "{", "e:", "None", "};", "k();"]
        );
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("rands rand::x brand::y rand::z", "rand::").collect::<Vec<_>>(), [6, 23]);
        assert_eq!(identifier("  ab_1(c)"), "ab_1");
    }
}
