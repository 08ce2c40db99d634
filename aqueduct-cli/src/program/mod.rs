//! Programs that handle events: their command lines, their process groups, and what they say before they fail.

mod command;
mod group;
mod tail;

pub(crate) use command::CommandLine;
pub(crate) use group::{Group, Groups};
pub(crate) use tail::Tail;
