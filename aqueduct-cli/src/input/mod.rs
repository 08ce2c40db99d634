//! Events from text: lines, paths into JSON, and what becomes of a line.

mod lines;
mod path;
mod recipe;

pub(crate) use lines::{Line, Lines};
pub(crate) use path::Path;
pub(crate) use recipe::{Recipe, read_event};
