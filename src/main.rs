//! Parses, dispatches; nothing else.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let after = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    #[cfg(feature = "lab")]
    if args.get(1).is_some_and(|word| word == "lab-process") {
        let role = args.get(2).map_or("", String::as_str);
        let home = after("--lab-home").map(std::path::PathBuf::from).unwrap_or_default();
        let region = after("--region").map(String::as_str);
        return Ok(tokio::runtime::Runtime::new()?.block_on(muster::lab::process_main(role, &home, region))?);
    }
    #[cfg(feature = "lab")]
    if args.get(1).is_some_and(|word| word == "lab-up-for-tests") {
        let state = std::path::PathBuf::from(args.get(2).map_or("", String::as_str));
        tokio::runtime::Runtime::new()?.block_on(muster::lab::Lab::up(&state, muster::lab::Options::default()))?;
    }
    let _ = after;
    Ok(())
}
