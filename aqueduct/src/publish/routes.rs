//! The table from types to topics.

use std::cmp::Ordering;
use std::panic::Location;

use crate::error::WiringError;
use crate::pattern::Pattern;
use crate::topic::{Text, Topic};

/// Patterns over types and the topics of what they match.
#[derive(Clone, Default)]
pub(super) struct Routes {
    routes: Vec<Route>,
    /// The first route that cannot be used.
    mistake: Option<WiringError>,
}

#[derive(Clone)]
struct Route {
    pattern: Pattern,
    topic: Topic,
    at: &'static Location<'static>,
}

impl Routes {
    /// Adds a route, or notes what is wrong with it.
    pub(super) fn add(&mut self, pattern: &Text, topic: Topic, at: &'static Location<'static>) {
        let route = Pattern::parse(pattern.as_str()).map_err(|e| e.to_string());
        match route.and_then(|pattern| self.clash(&pattern).map_or(Ok(pattern), Err)) {
            Ok(pattern) => self.routes.push(Route { pattern, topic, at }),
            Err(mistake) => _ = self.mistake.get_or_insert_with(|| WiringError::new(mistake).at(at)),
        }
    }

    /// Says which earlier route leaves it open where some type goes.
    fn clash(&self, pattern: &Pattern) -> Option<String> {
        let open = |other: &Pattern| match pattern.cmp_specificity(other) {
            None => true,
            Some(order) => order == Ordering::Equal && pattern.overlaps(other),
        };
        let other = self.routes.iter().find(|route| open(&route.pattern))?;
        Some(format!(
            "routes {:?} and {:?} match some of the same types and neither is more specific: make one of them narrower",
            other.pattern.as_str(),
            pattern.as_str()
        ))
    }

    /// The first mistake, if there was one.
    pub(super) fn check(&self) -> Result<(), WiringError> {
        self.mistake.clone().map_or(Ok(()), Err)
    }

    /// The topic of the most specific pattern that matches.
    pub(super) fn find(&self, kind: &str) -> Option<&Topic> {
        let matching = self.routes.iter().filter(|route| route.pattern.matches(kind));
        let narrower = |a, b| if narrower(a, b) { a } else { b };
        matching.reduce(narrower).map(|route| &route.topic)
    }

    /// Patterns, topics and where they were put together.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Topic, &'static Location<'static>)> {
        self.routes.iter().map(|route| (route.pattern.as_str(), &route.topic, route.at))
    }
}

fn narrower(a: &Route, b: &Route) -> bool {
    a.pattern.is_exact() || a.pattern.cmp_specificity(&b.pattern) == Some(Ordering::Less)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(patterns: &[&str]) -> Routes {
        let mut routes = Routes::default();
        for pattern in patterns {
            routes.add(&Text::from(*pattern), Topic::from(*pattern), Location::caller());
        }
        routes
    }

    #[test]
    fn the_most_specific_route_wins_in_any_order() {
        let mut patterns = [">", "order.>", "order.*", "order.placed", "payment.*"];
        for _ in 0..patterns.len() {
            patterns.rotate_left(1);
            let routes = routes(&patterns);
            routes.check().unwrap();
            for (kind, topic) in [
                ("order.placed", "order.placed"),
                ("order.paid", "order.*"),
                ("order.paid.twice", "order.>"),
                ("payment.made", "payment.*"),
                ("payment", ">"),
            ] {
                assert_eq!(routes.find(kind).unwrap().as_str(), topic, "{kind}");
            }
        }
    }

    #[test]
    fn a_route_that_leaves_something_open_is_a_mistake() {
        for (patterns, names) in [
            (&["a.*", "*.b"][..], &["\"a.*\"", "\"*.b\""][..]),
            (&["a.b", "a.b"], &["\"a.b\""]),
            (&["a.", "b"], &["\"a.\"", "empty"]),
        ] {
            let text = routes(patterns).check().unwrap_err().to_string();
            assert!(names.iter().all(|n| text.contains(n)) && text.contains("routes.rs"), "{text}");
        }
        routes(&["a.*", "b.*", "a.b", ">"]).check().unwrap();
    }
}
