//! Parses, dispatches; nothing else.
#![forbid(unsafe_code)]

fn main() {}
