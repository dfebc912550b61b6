//! Who sits at this machine, as far as it can be known: for records and for those who meet their traces.

/// The person, by the name that the environment or the system gives.
#[must_use]
pub fn person() -> String {
    let user =
        ["MUSTER_USER", "SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|user| !user.is_empty());
    user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The machine's name.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
