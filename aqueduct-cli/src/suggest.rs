//! What a person may have meant by a name that does not exist.

/// The names that are most like `name`, which is none of them; at most three, and none much farther than the nearest.
fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    let mut near: Vec<_> = names.into_iter().map(|other| (distance(other), other)).collect();
    near.sort_unstable();
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, other)| *distance <= best + 1 && *distance <= 2.max(other.len() / 4));
    near.into_iter().take(3).map(|(_, other)| other).collect()
}

/// The question whether one of the nearest was meant, if there is any.
pub(crate) fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near = nearest(name, names);
    (!near.is_empty()).then(|| format!("did you mean `{}`?", near.join("` or `")))
}
