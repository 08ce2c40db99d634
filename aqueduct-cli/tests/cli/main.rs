//! The program as its users run it: real processes on real files, and what they say.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod config;
mod consume;
mod demo;
mod disk;
mod exec;
mod handlers;
mod help;
mod http;
mod kill;
mod publish;
mod stream;
mod world;
