//! Finds what a file names of its own crate, and the file where that lives.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, blank, identifier, words};

/// A module of the own crate that a file names: where, and its path from the crate's root on.
#[derive(PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) offset: usize,
    pub(crate) path: Vec<String>,
}

/// The modules of a crate and what their indexes hand on.
pub(crate) struct Crate {
    modules: BTreeSet<Vec<String>>,
    handed_on: BTreeMap<Vec<String>, Vec<(String, Vec<String>)>>,
}

impl Crate {
    pub(crate) fn new(sources: &[Source]) -> Self {
        let modules = sources.iter().map(|s| owned(&s.module())).collect();
        let mut this = Self { modules, handed_on: BTreeMap::new() };
        for source in sources.iter().filter(|s| s.is_index()) {
            let module = owned(&source.module());
            let mut items = Vec::new();
            for import in uses(&source.live).into_iter().filter(|u| u.public) {
                for (name, path) in import.paths {
                    items.extend(this.absolute(&module, &path).map(|path| (name, path)));
                }
            }
            this.handed_on.insert(module, items);
        }
        this
    }

    /// Everything that a file names of its own crate in live code. What an index hands on does not count.
    pub(crate) fn named(&self, source: &Source) -> Vec<Named> {
        let module = owned(&source.module());
        let mut code = source.live.clone();
        let mut named = Vec::new();
        for import in uses(&source.live) {
            code.replace_range(import.start..import.end, &blank(&code[import.start..import.end]));
            if import.public && source.is_index() {
                continue;
            }
            let paths = import.paths.iter().filter_map(|(_, path)| self.absolute(&module, path));
            named.extend(paths.map(|path| Named { offset: import.start, path: self.home(path) }));
        }
        for root in ["crate::", "super::"] {
            for offset in words(&code, root).filter(|&i| !code[..i].ends_with("::")) {
                let absolute = self.absolute(&module, &inline_path(&code[offset..]));
                named.extend(absolute.map(|path| Named { offset, path: self.home(path) }));
            }
        }
        named.dedup();
        named
    }

    /// A path as written in `module`, from the root on; none if it leads out of the crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?;
        let mut from = match first.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => module.to_vec(),
            child if self.modules.contains(&[module, &[child.to_owned()]].concat()) => {
                return Some([module, path].concat());
            }
            _ => return None,
        };
        let mut rest = if first == "super" { path } else { &path[1..] };
        while rest.first().is_some_and(|s| s == "super") {
            from.pop();
            rest = &rest[1..];
        }
        Some([&from, rest].concat())
    }

    /// The module where the item at the end of a path lives, as far as indexes tell.
    fn home(&self, path: Vec<String>) -> Vec<String> {
        let mut path = path;
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|&n| self.modules.contains(&path[..n])).unwrap_or(0);
            let (module, item) = path.split_at(depth);
            let on = item.first().and_then(|i| self.handed_on.get(module)?.iter().find(|(name, _)| name == i));
            match on {
                Some((_, target)) if *target != path[..=depth] => path = target.clone(),
                _ => return module.to_vec(),
            }
        }
        path
    }
}

/// A `use` item.
pub(crate) struct Use {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) public: bool,
    /// Each imported name with its path.
    pub(crate) paths: Vec<(String, Vec<String>)>,
}

/// All `use` items of a file.
pub(crate) fn uses(code: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for start in words(code, "use") {
        let line = code[..start].rsplit('\n').next().unwrap_or("").trim();
        let item = line.is_empty() || line.starts_with("pub") && !line.contains('=') || line.ends_with(['{', ';', '}']);
        let Some(len) = code[start..].find(';').filter(|_| item) else { continue };
        let mut paths = Vec::new();
        expand(&[], &code[start + 3..start + len], &mut paths);
        found.push(Use { start, end: start + len + 1, public: line.starts_with("pub"), paths });
    }
    found
}

/// Every path in a tree such as `a::{b, c::{self, d as e}}`, with the name it gets.
fn expand(above: &[String], tree: &str, into: &mut Vec<(String, Vec<String>)>) {
    let tree = tree.trim();
    let (head, group) = tree.split_once('{').map_or((tree, None), |(h, g)| (h, Some(g)));
    let (head, name) = head.split_once(" as ").unwrap_or((head, ""));
    let names = head.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned);
    let mut path: Vec<_> = above.iter().cloned().chain(names).collect();
    if let Some(group) = group {
        let group = group.rsplit_once('}').map_or(group, |(g, _)| g);
        for part in split(group) {
            expand(&path, part, into);
        }
        return;
    }
    if path.len() > 1 && path.last().is_some_and(|s| s == "self" || s == "*") {
        path.pop();
    }
    let last = path.last().cloned().unwrap_or_default();
    if !last.is_empty() {
        into.push((if name.is_empty() { last } else { name.trim().to_owned() }, path));
    }
}

/// The parts between commas that are in no braces.
fn split(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
}

/// The path that a piece of code begins with.
pub(crate) fn inline_path(code: &str) -> Vec<String> {
    let (mut path, mut rest) = (Vec::new(), code);
    loop {
        let name = identifier(rest);
        if name.is_empty() {
            return path;
        }
        path.push(name.to_owned());
        match rest[name.len()..].strip_prefix("::") {
            Some(more) => rest = more,
            None => return path,
        }
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn homes(files: &[(&str, &str)], of: usize) -> Vec<String> {
        let sources = planted(files);
        Crate::new(&sources).named(&sources[of]).into_iter().map(|n| n.path.join("::")).collect()
    }

    #[test]
    fn a_tree_of_names_is_taken_apart() {
        let code = "use crate::{a::{self, B as C}, d};\npub(crate) use x::*;\nlet u = reuse;";
        let paths: Vec<_> = uses(code).into_iter().flat_map(|u| u.paths).map(|(n, p)| (n, p.join("::"))).collect();
        let want = [("a", "crate::a"), ("C", "crate::a::B"), ("d", "crate::d"), ("x", "x")];
        assert_eq!(paths, want.map(|(n, p)| (n.to_owned(), p.to_owned())));
    }

    #[test]
    fn a_name_is_followed_through_the_indexes_to_its_home() {
        let files = [
            ("lib.rs", "pub mod engine;\nmod event;\npub use engine::Consumer;\npub use event::{Event};"),
            ("engine/mod.rs", "mod serve;\npub use serve::Consumer;"),
            (
                "engine/serve.rs",
                "use super::Consumer;\nuse crate::Event;\nfn f() { crate::engine::serve::g(); self::h() }",
            ),
            (
                "event.rs",
                "use crate::Consumer;\n/// `crate::engine::X`\n#[cfg(test)]\nmod tests { use crate::engine::Y; }",
            ),
        ];
        assert_eq!(homes(&files, 0), [""; 0]);
        assert_eq!(homes(&files, 2), ["engine::serve", "event", "engine::serve"]);
        assert_eq!(homes(&files, 3), ["engine::serve"]);
    }

    #[test]
    fn a_plain_import_in_an_index_counts() {
        let files =
            [("broker/mod.rs", "mod memory;\nuse memory::Log;\npub use memory::Broker;"), ("broker/memory.rs", "")];
        assert_eq!(homes(&files, 0), ["broker::memory"]);
    }
}
