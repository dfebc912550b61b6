//! Parses, dispatches; nothing else.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    muster::cli::main()
}
