//! Who is to own which part: everybody the same number, give or take one, and as few changes as that takes.
//!
//! Owners keep what they have up to their number; what is left goes by rendezvous hashing. So all who see the same group
//! find the same shares, and a part moves only when somebody has too many or its owner is gone.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::topic::Text;

/// Parts and whose each is; none for nobody's.
pub(super) type Owners<'a> = BTreeMap<&'a Text, Option<&'a Text>>;

/// The member that is to own each part. Owners must be members.
pub(super) fn shares<'a>(owners: &Owners<'a>, members: &BTreeSet<&'a Text>) -> BTreeMap<&'a Text, &'a Text> {
    let Some(least) = owners.len().checked_div(members.len()) else { return BTreeMap::new() };
    let one_more = owners.len() % members.len();
    let mut deal = Deal { least, one_more, counts: BTreeMap::new(), heirs: BTreeMap::new() };
    let of = |owner: Option<&'a Text>| owners.iter().filter(move |(_, o)| **o == owner).map(|(part, _)| *part);
    let mut left: BTreeSet<&Text> = of(None).collect();
    for member in members {
        left.extend(deal.keep(member, of(Some(member)).collect()));
    }
    for part in left {
        deal.give(part);
    }
    deal.heirs
}

/// Parts that are being dealt.
struct Deal<'a> {
    /// Everybody gets so many.
    least: usize,
    /// So many members may still have one more.
    one_more: usize,
    /// How many each member has.
    counts: BTreeMap<&'a Text, usize>,
    heirs: BTreeMap<&'a Text, &'a Text>,
}

impl<'a> Deal<'a> {
    /// Lets a member keep as many of its parts as it may have, and answers the others.
    fn keep(&mut self, member: &'a Text, mut parts: Vec<&'a Text>) -> Vec<&'a Text> {
        let has_more = parts.len() > self.least && self.one_more > 0;
        self.one_more -= usize::from(has_more);
        let count = parts.len().min(self.least + usize::from(has_more));
        parts.sort_by_key(|part| std::cmp::Reverse(score(part, member)));
        let surplus = parts.split_off(count);
        self.counts.insert(member, count);
        self.heirs.extend(parts.into_iter().map(|part| (part, member)));
        surplus
    }

    /// Gives a part to the member with room that its hash ranks first.
    fn give(&mut self, part: &'a Text) {
        let most = self.least + usize::from(self.one_more > 0);
        let with_room = self.counts.iter_mut().filter(|(_, count)| **count < most);
        let Some((heir, count)) = with_room.max_by_key(|(member, _)| score(part, member)) else { return };
        self.one_more -= usize::from(*count == self.least);
        *count += 1;
        self.heirs.insert(part, heir);
    }
}

/// How a member ranks for a part.
fn score(part: &Text, member: &Text) -> u64 {
    xxh3_64_with_seed(part.as_str().as_bytes(), xxh3_64(member.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(prefix: &str, count: usize) -> Vec<Text> {
        (0..count).map(|n| Text::from(format!("{prefix}{n:03}"))).collect()
    }

    fn counts(shares: &BTreeMap<&Text, &Text>, members: &BTreeSet<&Text>) -> Vec<usize> {
        members.iter().map(|member| shares.values().filter(|owner| *owner == member).count()).collect()
    }

    /// Parts, members, and for each part an owner, nobody where it is beyond the members.
    fn group() -> impl Strategy<Value = (usize, usize, Vec<usize>)> {
        (0..40_usize, 1..9_usize)
            .prop_flat_map(|(parts, members)| (Just(parts), Just(members), prop::collection::vec(0..=members, parts)))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn every_part_has_an_heir_and_nobody_too_many((parts, members, owned) in group()) {
            let (parts, sessions) = (texts("p", parts), texts("s", members));
            let owners: Owners<'_> = parts.iter().zip(&owned).map(|(part, owner)| (part, sessions.get(*owner))).collect();
            let members: BTreeSet<&Text> = sessions.iter().collect();
            let dealt = shares(&owners, &members);
            prop_assert_eq!(dealt.len(), parts.len());
            let (least, most) = (parts.len() / members.len(), parts.len().div_ceil(members.len()));
            for count in counts(&dealt, &members) {
                prop_assert!((least..=most).contains(&count), "{} is not from {} to {}", count, least, most);
            }
            // No more moves than the surplus, and none once everything is as it is to be.
            let moved = owners.iter().filter(|(part, owner)| owner.is_some_and(|owner| dealt[*part] != owner)).count();
            let has = |member: &Text| owners.values().filter(|owner| **owner == Some(member)).count();
            let surplus: usize = members.iter().map(|member| has(member).saturating_sub(least)).sum();
            let one_more = members.iter().filter(|member| has(member) > least).count().min(parts.len() % members.len());
            prop_assert_eq!(moved, surplus - one_more);
            let settled: Owners<'_> = dealt.iter().map(|(part, owner)| (*part, Some(*owner))).collect();
            prop_assert_eq!(shares(&settled, &members), dealt);
        }

        #[test]
        fn letting_go_of_what_is_another_s_share_asks_for_nothing_more(
            (parts, members, owned) in group(),
            first in 0..40_usize,
        ) {
            let (parts, sessions) = (texts("p", parts), texts("s", members));
            let mut owners: Owners<'_> =
                parts.iter().zip(&owned).map(|(part, owner)| (part, sessions.get(*owner))).collect();
            let members: BTreeSet<&Text> = sessions.iter().collect();
            let before = shares(&owners, &members);
            let moving: Vec<&Text> = owners.iter().filter(|(p, o)| o.is_some_and(|o| before[*p] != o)).map(|(p, _)| *p).collect();
            prop_assume!(!moving.is_empty());
            owners.insert(moving[first % moving.len()], None);
            let after = shares(&owners, &members);
            for (part, owner) in &owners {
                let Some(owner) = owner else { continue };
                prop_assert_eq!(before[part] == *owner, after[part] == *owner, "{} of {}", part, owner);
            }
        }
    }

    #[test]
    fn nobody_s_parts_are_spread_and_one_that_joins_gets_its_share_from_all() {
        let (parts, sessions) = (texts("p", 64), texts("s", 4));
        let three: BTreeSet<&Text> = sessions[..3].iter().collect();
        let dealt = shares(&parts.iter().map(|part| (part, None)).collect(), &three);
        let four: BTreeSet<&Text> = sessions.iter().collect();
        let again = shares(&dealt.iter().map(|(part, owner)| (*part, Some(*owner))).collect(), &four);
        let moved: Vec<_> = parts.iter().filter(|part| dealt[part] != again[part]).collect();
        assert_eq!((moved.len(), counts(&again, &four)), (16, vec![16; 4]));
        assert!(moved.iter().all(|part| again[*part] == &sessions[3]));
        assert!(three.iter().all(|member| moved.iter().any(|part| dealt[*part] == *member)));
    }
}
