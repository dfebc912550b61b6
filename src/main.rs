//! Parses, dispatches; nothing else.
#![forbid(unsafe_code)]

/// The program's own allocator: of thousands of small records a second, and of backups in pieces of megabytes, the
/// system's makes a fifth more work and half as much memory again (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    muster::cli::main()
}
