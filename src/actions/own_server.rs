//! What several actions do with a PostgreSQL server of one's own: make its directory a standby's, wait until nothing of
//! it lives, name its slots. It decides nothing about who may write.

use super::{contract::*, patroni::hands_off, shared::*};
use crate::model::{effect::Seen, estate::*, ids::*};
use crate::providers::{machine::conninfo_value, port::*};
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;

pub(crate) const STANDBY: &str = "standby.signal";
/// How long a standby that has just lost its receiver may sit before it takes notice of a promotion.
pub(crate) const RETRY_INTERVAL: &str = "wal_retrieve_retry_interval";
pub(crate) const QUICK_RETRY: &str = "50ms";
/// Above this a promotion may wait for it.
pub(crate) const SLOW_RETRY_MS: u64 = 500;

pub(crate) fn is_own(cx: &ReadCx, name: &DatabaseName) -> Result<bool, Refusal> {
    Ok(database(cx, name)?.engine == Engine::Postgres)
}

pub(crate) fn instance<'a>(cx: &'a ReadCx, name: &DatabaseName, region: &RegionName) -> Result<&'a Instance, Refusal> {
    let found = database(cx, name)?.instances.get(region);
    found.ok_or_else(|| Refusal::no("no_instance", format!("database `{name}` has no instance in region `{region}`")))
}

/// The machine must be reachable: SQL can neither stop nor start a server.
pub(crate) fn needs_machine(cx: &ReadCx, name: &DatabaseName, region: &RegionName, why: &str) -> Result<(), Refusal> {
    if instance(cx, name, region)?.server.is_some() {
        return Ok(());
    }
    Err(Refusal::no("no_server", format!("the estate does not say how the machine of `{name}` in `{region}` is reached, so {why}"))
        .remedy(format!("write databases.{name}.instances.{region}.server")))
}

/// Patroni starts what was stopped, and writes its own configuration: whoever works around it, it undoes. A machine that
/// cannot be asked is no reason to refuse here.
pub(crate) async fn not_patronis(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<(), Refusal> {
    let instance = instance(cx, name, region)?;
    if instance.patroni.is_some() {
        return Err(hands_off(cx, name, region));
    }
    if instance.server.is_none() {
        return Ok(());
    }
    match cx.world.machine(name.as_str(), region.as_str())?.look().await {
        Ok(state) if state.patroni => Err(hands_off(cx, name, region)),
        _ => Ok(()),
    }
}

/// The slot in which a primary keeps the log for the standby in a region.
pub(crate) fn slot_name(region: &RegionName) -> String {
    let word: String = region.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    format!("muster_{word}").chars().take(63).collect()
}

/// How a region's server is connected to: as Muster itself, or as a standby does.
pub(crate) fn upstream(cx: &ReadCx, name: &DatabaseName, region: &RegionName, standby: bool) -> Result<Upstream, Refusal> {
    let all = database(cx, name)?;
    let at = instance(cx, name, region)?;
    let (user, password) = match all.replication.as_ref().filter(|_| standby) {
        Some(login) => (&login.user, &login.password),
        None => (&all.user, &all.password),
    };
    Ok(Upstream {
        host: at.host.clone().unwrap_or_default(),
        port: at.port.unwrap_or(5432),
        user: user.clone(),
        database: all.name.clone(),
        password: password.as_ref().map(|reference| cx.world.secret(reference)).transpose()?,
    })
}

pub(crate) fn conninfo(up: &Upstream, name: &str) -> SecretString {
    let mut text = format!("host={} port={} user={}", conninfo_value(&up.host), up.port, conninfo_value(&up.user));
    if let Some(password) = &up.password {
        text.push_str(&format!(" password={}", conninfo_value(password.expose_secret())));
    }
    text.push_str(&format!(" application_name={}", conninfo_value(name)));
    text.into()
}

/// From the next start on, whoever starts it, the server is a standby: of that primary, or of nobody.
pub(crate) async fn make_standby(machine: &dyn MachineWrite, of: Option<(&Upstream, &RegionName)>) -> PortResult<()> {
    match of {
        Some((up, region)) => machine.make_standby(&conninfo(up, &slot_name(region)), &slot_name(region)).await,
        None => machine.make_standby(&String::new().into(), "").await,
    }
}

/// Waits until nothing of the server lives; what it says then.
pub(crate) async fn await_dead(cx: &ReadCx, machine: &dyn MachineRead, limit: Duration) -> PortResult<Option<MachineState>> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + limit;
    loop {
        let state = machine.look().await?;
        if state.dead() {
            return Ok(Some(state));
        }
        if clock.monotonic() >= until {
            return Ok(None);
        }
        clock.sleep(Duration::from_millis(5)).await;
    }
}

/// Stops a server by whatever it takes: asked, then not asked, then killed, with all that it left behind. Backends whose
/// postmaster is gone are killed at once: nobody is left to ask, and one of them may be about to commit.
pub(crate) async fn stop(cx: &ReadCx, machine: &dyn MachineWrite, patience: Duration) -> PortResult<MachineState> {
    for (how, limit) in [(Some(Stop::Fast), patience), (Some(Stop::Immediate), Duration::from_secs(5)), (None, Duration::from_secs(5))] {
        let state = machine.look().await?;
        if state.dead() {
            return Ok(state);
        }
        match how.filter(|_| state.postmaster) {
            Some(how) => machine.stop(how).await?,
            None => machine.kill().await?,
        }
        if let Some(state) = await_dead(cx, machine, limit).await? {
            return Ok(state);
        }
    }
    Err(PortError::Unknown("processes of the server do not end, not even when killed".into()))
}

/// `5s`, `50ms` in milliseconds.
pub(crate) fn setting_ms(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match text.get(digits.len()..)? {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "min" => number.checked_mul(60_000),
        "" if number == 0 => Some(0),
        _ => None,
    }
}

/// A server of one's own that has left recovery, if it can be asked.
pub(crate) async fn state_of(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> PortResult<ServerState> {
    cx.world.sql(name.as_str(), region.as_str())?.state().await
}

/// Another region whose server says that it can be written to.
pub(crate) async fn other_primary(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<Option<RegionName>, Refusal> {
    for other in database(cx, name)?.instances.keys().filter(|r| *r != region) {
        let asked = within(cx, Duration::from_secs(2), state_of(cx, name, other)).await;
        if asked.is_ok_and(|state| !state.in_recovery && !state.read_only) {
            return Ok(Some(other.clone()));
        }
    }
    Ok(None)
}

/// What `observe` answers where a question fails.
pub(crate) async fn seen<O>(look: impl Future<Output = PortResult<Seen<O>>> + Send) -> Seen<O> {
    match look.await {
        Ok(seen) => seen,
        Err(e) => cannot_tell(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_in_a_setting() {
        assert_eq!(
            [setting_ms("5s"), setting_ms("50ms"), setting_ms("1min"), setting_ms("0"), setting_ms("x")],
            [Some(5_000), Some(50), Some(60_000), Some(0), None]
        );
    }
}
