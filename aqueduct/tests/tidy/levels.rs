//! An import points down only.

use crate::imports::Crate;
use crate::source::{Finding, Source};

/// The part of the library that a module belongs to, lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Area {
    /// Level 0.
    Types,
    /// Level 1.
    Port,
    /// Level 2: a port's name and the adapter's.
    Adapter(String, String),
    /// Level 2: formats, names, tables and presets of other libraries; sees every adapter, and the API.
    Compat,
    /// Level 2: what is to be on a NATS server; sees that adapter.
    Topology,
    /// Level 2.
    Api,
    /// Level 3.
    Engine,
    /// Level 4.
    Testing,
    /// The index of the crate.
    Root,
}

const TYPES: [&str; 10] =
    ["call", "clock", "error", "event", "headers", "message", "outcome", "pattern", "telemetry", "topic"];
const API: [&str; 5] = ["handler", "layer", "policy", "publish", "router"];

/// Imports that point sideways all the same: the file or folder, the adapter's module, and why.
const EXCEPTIONS: [(&str, &str, &str); 6] = [
    ("engine/relay/serve.rs", "format::cloudevents", "the default format of `Relay`"),
    ("engine/serve.rs", "format::cloudevents", "the default format of `Consumer`"),
    ("engine/serve.rs", "store::memory", "the default store of `Consumer`"),
    ("publish", "format::cloudevents", "the default format of `Publisher`"),
    ("broker/sqlite", "store::sql", "the embedded log lives in the SQL store's file"),
    ("store/sql/outbox.rs", "format::cloudevents", "the default format of `Outbox`"),
];

fn area(module: &[String]) -> Option<Area> {
    let names: Vec<_> = module.iter().map(String::as_str).collect();
    Some(match names[..] {
        [] => Area::Root,
        [name] if TYPES.contains(&name) => Area::Types,
        ["broker" | "store" | "format" | "extract"] | ["store", "outbox"] | ["format", "object"] | ["lease", ..] => {
            Area::Port
        }
        [port @ ("broker" | "store" | "format"), adapter, ..] => Area::Adapter(port.to_owned(), adapter.to_owned()),
        ["compat", ..] => Area::Compat,
        ["topology", ..] => Area::Topology,
        ["extract", ..] => Area::Api,
        [name, ..] if API.contains(&name) => Area::Api,
        ["engine", ..] => Area::Engine,
        ["testing", ..] => Area::Testing,
        _ => return None,
    })
}

/// Whether a module of one area may name a module of another.
fn may_name(from: &Area, to: &Area) -> bool {
    use Area::{Adapter, Api, Compat, Engine, Port, Root, Testing, Topology, Types};
    match from {
        Types => matches!(to, Root | Types),
        Port => matches!(to, Root | Types | Port),
        Adapter(..) => matches!(to, Root | Types | Port) || from == to,
        Compat => matches!(to, Root | Types | Port | Adapter(..) | Compat | Api),
        Topology => match to {
            Adapter(port, name) => port == "broker" && name == "nats",
            to => matches!(to, Root | Types | Port | Topology),
        },
        Api => matches!(to, Root | Types | Port | Api),
        Engine => matches!(to, Root | Types | Port | Api | Engine),
        Root | Testing => true,
    }
}

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let library = Crate::new(sources);
    let mut findings = Vec::new();
    let mut needed = [false; EXCEPTIONS.len()];
    for source in sources {
        let module: Vec<_> = source.module().into_iter().map(str::to_owned).collect();
        let Some(from) = area(&module) else {
            let what = "this module has no level: give it one in ARCHITECTURE.md and in tests/tidy/levels.rs";
            findings.push(source.finding(0, what));
            continue;
        };
        for named in library.named(source) {
            if area(&named.path).is_none_or(|to| may_name(&from, &to)) {
                continue;
            }
            let home = named.path.join("::");
            match EXCEPTIONS.iter().position(|(file, to, _)| source.path.starts_with(file) && home.starts_with(to)) {
                Some(exception) => needed[exception] = true,
                None => findings.push(source.finding(
                    named.offset,
                    format!("names `{home}`, and imports point down only: move what both need to a lower level"),
                )),
            }
        }
    }
    findings.extend(stale(sources, needed));
    findings
}

/// Exceptions that the file they are for does not need any more.
fn stale(sources: &[Source], needed: [bool; EXCEPTIONS.len()]) -> Vec<Finding> {
    let unneeded = EXCEPTIONS.iter().zip(needed).filter(|(_, needed)| !needed);
    let of_a_file = unneeded.filter_map(|(e, _)| Some((e, sources.iter().find(|s| s.path.starts_with(e.0))?)));
    let what =
        |to, reason| format!("no longer names `{to}` ({reason}): take the exception out of tests/tidy/levels.rs");
    of_a_file.map(|((_, to, reason), source)| source.finding(0, what(to, reason))).collect()
}

mod lints {
    use super::*;
    use crate::source::planted;

    /// A crate with a file of every area, and one more line in one of them.
    fn found(file: &str, line: &str) -> Vec<String> {
        let files = [
            ("lib.rs", "pub mod broker; pub mod engine;\npub use broker::MemoryBroker;\npub use engine::Consumer;\n"),
            ("event.rs", ""),
            ("topology.rs", ""),
            ("policy.rs", ""),
            ("broker/mod.rs", "pub mod memory;\npub mod nats;\npub use memory::MemoryBroker;\n"),
            ("broker/memory.rs", ""),
            ("broker/nats.rs", ""),
            ("engine/mod.rs", "mod serve;\npub use serve::Consumer;\n"),
            ("engine/serve.rs", "use crate::format::CloudEvents;\nuse crate::store::memory::MemoryStore;\n"),
            ("engine/lanes.rs", ""),
            ("format/mod.rs", "pub use cloudevents::CloudEvents;\n"),
            ("format/cloudevents.rs", ""),
            ("store/mod.rs", ""),
            ("store/memory.rs", ""),
            ("testing/mod.rs", ""),
        ];
        let changed =
            files.map(|(path, text)| (path, if path == file { format!("{text}{line}") } else { text.to_owned() }));
        let borrowed: Vec<_> = changed.iter().map(|(p, t)| (*p, t.as_str())).collect();
        check(&planted(&borrowed)).into_iter().map(|f| f.at).collect()
    }

    #[test]
    fn downward_imports_pass() {
        for (file, line) in [
            ("engine/lanes.rs", "use crate::{event::Event, policy::Policy, broker::Broker};"),
            ("broker/memory.rs", "use super::Broker;\nuse crate::event::Event;"),
            ("testing/mod.rs", "use crate::{Consumer, MemoryBroker};"),
            ("topology.rs", "use crate::broker::nats::Nats;"),
            ("event.rs", "/// See [`Consumer`](crate::Consumer).\n#[cfg(test)]\nmod tests { use crate::Consumer; }"),
        ] {
            assert_eq!(found(file, line), [""; 0], "{file}: {line}");
        }
    }

    #[test]
    fn upward_and_sideways_imports_are_found() {
        for (file, line) in [
            ("event.rs", "use crate::broker::Broker;"),
            ("event.rs", "use crate::Consumer;"),
            ("event.rs", "fn f() { crate::policy::p() }"),
            ("broker/memory.rs", "use super::nats::Nats;"),
            ("broker/memory.rs", "use crate::{store::{self, memory::M}};"),
            ("broker/memory.rs", "use crate::policy::Policy;"),
            ("policy.rs", "use crate::engine::lanes::Lanes;"),
            ("engine/lanes.rs", "use crate::MemoryBroker;"),
            ("engine/serve.rs", "use crate::broker::memory::X;"),
            ("engine/lanes.rs", "use crate::testing::TestApp;"),
            ("store/mod.rs", "use memory::MemoryStore;"),
            ("topology.rs", "use crate::broker::memory::X;"),
            ("broker/nats.rs", "use crate::topology::Plan;"),
        ] {
            let at = found(file, line);
            assert!(at.len() == 1 && at[0].starts_with(file), "{file}: {line}: {at:?}");
        }
    }

    #[test]
    fn an_exception_that_nothing_needs_is_found() {
        assert_eq!(check(&planted(&[("engine/serve.rs", "use crate::event::Event;")])).len(), 2);
    }

    #[test]
    fn a_module_without_a_level_is_found() {
        assert_eq!(check(&planted(&[("things.rs", "")])).len(), 1);
    }
}
