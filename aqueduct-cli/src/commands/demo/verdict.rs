//! What came of it, told in a table.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::story::Webhook;

/// What became of all events.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    pub(super) published: usize,
    pub(super) handled: usize,
    pub(super) dead_letters: usize,
    pub(super) lost: usize,
    pub(super) done_twice: usize,
    pub(super) out_of_order: usize,
}

impl Verdict {
    /// Judges effects, in the order in which they happened.
    pub(super) fn new(webhooks: &[Webhook], effects: &[String], dead: &[String]) -> Self {
        let places: BTreeMap<&str, (usize, Option<&str>)> = (0..)
            .zip(webhooks)
            .map(|(place, webhook)| (webhook.number.as_str(), (place, webhook.repository.as_deref())))
            .collect();
        let (mut done, mut reached) = (BTreeSet::new(), BTreeMap::new());
        let (mut done_twice, mut out_of_order) = (0, 0);
        for effect in effects {
            if !done.insert(effect.as_str()) {
                done_twice += 1;
                continue;
            }
            let Some((place, Some(repository))) = places.get(effect.as_str()) else { continue };
            let last = reached.entry(*repository).or_insert(*place);
            out_of_order += usize::from(place < last);
            *last = (*last).max(*place);
        }
        let kept = dead.iter().filter(|dead| !done.contains(dead.as_str())).count();
        let (published, handled) = (webhooks.len(), done.len());
        let lost = published - handled.min(published) - kept;
        Self { published, handled, dead_letters: kept, lost, done_twice, out_of_order }
    }

    /// True if every promise was kept.
    pub(super) fn is_good(&self) -> bool {
        self.lost + self.done_twice + self.out_of_order == 0
    }
}

/// The verdicts beside each other, each with its name.
pub(super) fn table(columns: &[(&str, &Verdict)]) -> String {
    let row = |name: &str, of: fn(&Verdict) -> usize| {
        let cell =
            |line: String, (title, verdict): &(&str, &Verdict)| format!("{line}{:>1$}", of(verdict), title.len() + 3);
        columns.iter().fold(format!("  {name:<42}"), cell) + "\n"
    };
    let mut text = " ".repeat(44);
    for (title, _) in columns {
        text.push_str("   ");
        text.push_str(title);
    }
    text.push('\n');
    text += &row("events published", |v| v.published);
    text += &row("handled", |v| v.handled);
    text += &row("kept as dead letters, with their history", |v| v.dead_letters);
    text += &row("LOST", |v| v.lost);
    text += &row("DONE TWICE", |v| v.done_twice);
    text += &row("OUT OF ORDER within their repository", |v| v.out_of_order);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::demo::story::webhooks;

    #[test]
    fn what_is_missing_repeated_or_overtaken_is_counted() {
        let all = webhooks().unwrap();
        let numbers: Vec<String> = all.iter().map(|webhook| webhook.number.clone()).collect();
        let good = Verdict::new(&all, &numbers, &[]);
        assert!(good.is_good() && good.handled == 329, "{good:?}");
        let one = all.iter().position(|webhook| webhook.repository.is_some()).unwrap();
        let next = one + 1 + all[one + 1..].iter().position(|w| w.repository == all[one].repository).unwrap();
        let mut bad = numbers.clone();
        bad.swap(one, next);
        bad.push(bad[0].clone());
        let dead = bad.remove(300);
        bad.remove(200);
        let found = Verdict::new(&all, &bad, std::slice::from_ref(&dead));
        let expected =
            Verdict { published: 329, handled: 327, dead_letters: 1, lost: 1, done_twice: 1, out_of_order: 1 };
        assert_eq!(found, expected);
    }
}
