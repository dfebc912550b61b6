//! Parses, dispatches; nothing else.
#![forbid(unsafe_code)]

/// A run makes thousands of small values on one thread and drops them on another; the C library's allocator takes
/// a fifth of the processor for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    muster::cli::main()
}
