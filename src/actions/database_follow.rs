//! `database.follow`: lead the other standbys of a database to its new primary.
//!
//! **What it does.** After a promotion or a switchover a third server still follows the old primary: through it, if that
//! came back as a standby, or nobody. For each that shall be led, a slot is made on the new primary; `primary_conninfo`
//! and `primary_slot_name` are set and read again, which takes no restart; when it streams from there, as the new primary
//! itself sees it, the slot that the old one kept for it is let go of, where that can be asked, or the log would pile up
//! there. One that has replayed more than the new primary ever had cannot follow it: that is for `database.rejoin`.
//!
//! **Half-done** it is anywhere between these; each part looks at nothing but whether it stands, and may be done again.
//!
//! **Undone** it is by setting what was set before, with a slot where there was one. A password does not go on record:
//! it is that of the estate's `replication` again.

use super::{contract::*, own_server::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const SETTINGS: [&str; 3] = ["primary_conninfo", "primary_slot_name", "recovery_target_timeline"];
/// How long a standby that was told may take until it streams, before it is looked at again.
const STREAM: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the new primary is.
    pub primary: RegionName,
    /// Whose standbys are led to it. Left out, those of all other regions, as far as they can be; those that cannot are named
    /// in the output.
    #[serde(default)]
    pub regions: Vec<RegionName>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    database: DatabaseName,
    primary: RegionName,
    system_identifier: String,
    /// Of the new primary.
    timeline: u32,
    standbys: Vec<Standing>,
    left: Vec<Left>,
}

/// One that shall be led, and what it follows now.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Standing {
    region: RegionName,
    slot: String,
    /// Without its password.
    was: String,
    had_password: bool,
    was_slot: String,
    /// The region that `was` leads to, if it is one of the estate.
    from: Option<RegionName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Led {
    pub region: RegionName,
    /// The slot on the new primary.
    pub slot: String,
    /// What it followed before, if that is a region of the estate.
    pub from: Option<RegionName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Left {
    pub region: RegionName,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Those that follow the new primary now and did not before.
    pub led: Vec<Led>,
    /// Those that could not be led.
    pub left: Vec<Left>,
}

pub struct Follow;

impl Action for Follow {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.follow",
            version: 1,
            summary: "Lead the other standbys of a database to its new primary",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(120),
            example: "id: others\nuses: database.follow\nwith: { database: predictions, primary: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_servers(with, estate).chain([reach_here()]).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, primary, regions } = input;
        if !is_own(cx, &name)? {
            return Err(Refusal::no("not_own", format!("`{name}` is Amazon's; its read replicas follow what they were made from"))
                .remedy("make a replica of the new primary with `rds.create_replica`"));
        }
        instance(cx, &name, &primary)?;
        let new = state_of(cx, &name, &primary).await?;
        if new.in_recovery {
            return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{primary}` is a standby, not the primary")));
        }
        let named = !regions.is_empty();
        let regions = if named { regions } else { database(cx, &name)?.instances.keys().filter(|r| **r != primary).cloned().collect() };
        let mut intent = Intent {
            database: name, primary, system_identifier: new.system_identifier.clone(), timeline: new.timeline, standbys: Vec::new(), left: Vec::new(),
        };
        let (mut changes, mut notes) = (Vec::new(), Vec::new());
        for region in regions {
            match look(cx, &intent, &new, &region).await {
                Ok(Some(standing)) => {
                    let from = standing.from.as_ref().map_or_else(|| standing.was.clone(), ToString::to_string);
                    changes.push(change(format!("{} in {region}", intent.database), Some(format!("follows {from}")), Some(format!("follows {}", intent.primary))));
                    intent.standbys.push(standing);
                }
                Ok(None) => notes.push(format!("`{region}` follows `{}` already", intent.primary)),
                Err(refusal) if named => return Err(refusal),
                Err(refusal) => {
                    notes.push(format!("`{region}` is left as it is: {}", refusal.failure.message));
                    intent.left.push(Left { region, why: refusal.failure.message });
                }
            }
        }
        Ok(Prepared { intent, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        for standing in &intent.standbys {
            lead(cx, intent, standing).await?;
        }
        Ok(output(intent))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        for standing in &intent.standbys {
            match seen(follows(cx, intent, standing)).await {
                Seen::Done(()) => {}
                Seen::Absent => return Seen::Absent,
                Seen::Pending { poll_after_ms, note } => return Seen::Pending { poll_after_ms, note },
                Seen::Differs { found } => return Seen::Differs { found },
                Seen::CannotTell { why } => return Seen::CannotTell { why },
            }
        }
        Seen::Done(output(intent))
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        for standing in &intent.standbys {
            lead_back(cx, intent, standing).await?;
        }
        Ok(())
    }
}

fn output(intent: &Intent) -> Output {
    let led = |s: &Standing| Led { region: s.region.clone(), slot: s.slot.clone(), from: s.from.clone() };
    Output { led: intent.standbys.iter().map(led).collect(), left: intent.left.clone() }
}

/// What stands there, if it is a standby that can follow and does not yet.
async fn look(cx: &ReadCx, intent: &Intent, new: &ServerState, region: &RegionName) -> Result<Option<Standing>, Refusal> {
    let name = &intent.database;
    let who = format!("`{name}` in `{region}`");
    if *region == intent.primary {
        return Err(Refusal::no("same_region", format!("{who} is the primary itself")));
    }
    instance(cx, name, region)?;
    not_patronis(cx, name, region).await?;
    let state = within(cx, Duration::from_secs(5), state_of(cx, name, region)).await?;
    if !state.in_recovery {
        return Err(Refusal::no("not_a_standby", format!("{who} is a primary")).remedy("fence it, and bring it back with `database.rejoin`"));
    }
    if state.system_identifier != intent.system_identifier {
        return Err(Refusal::no("another_cluster", format!("{who} is another cluster ({})", state.system_identifier)));
    }
    if state.timeline != new.timeline {
        let history = cx.world.cluster(name.as_str(), intent.primary.as_str())?.history(new.timeline).await?;
        let parted = history.iter().find(|(timeline, _)| *timeline == state.timeline).map(|(_, at)| *at);
        if parted.is_none_or(|at| state.position > at) {
            let there = parted.map_or_else(|| format!("timeline {}", state.timeline), |at| format!("{} beyond {at}", state.position));
            return Err(Refusal::no("ahead", format!("{who} has what the primary in `{}` never had ({there})", intent.primary))
                .remedy("bring it back with `database.rejoin`, which keeps that"));
        }
    }
    let mut settings = cx.world.cluster(name.as_str(), region.as_str())?.settings(&SETTINGS).await?;
    if let Some(target) = settings.get("recovery_target_timeline").filter(|target| *target != "latest") {
        return Err(Refusal::no("timeline_target", format!("recovery_target_timeline of {who} is `{target}`: it follows no promotion"))
            .remedy("set it to `latest`; that takes a restart"));
    }
    let (was, was_slot) = (settings.remove("primary_conninfo").unwrap_or_default(), settings.remove("primary_slot_name").unwrap_or_default());
    let slot = slot_name(region);
    if was == wanted(cx, name, &intent.primary, region)?.expose_secret() && was_slot == slot {
        return Ok(None);
    }
    let told = parts(&was);
    // What Muster would put on record must be free of secrets, and what it changes it must be able to put back.
    if was.contains("://") || told.iter().any(|(key, _)| key == "sslpassword") {
        return Err(Refusal::no("conninfo", format!("primary_conninfo of {who} is a URI or holds an `sslpassword`, which Muster does not take down"))
            .remedy("write it as `host=… port=… user=…`, with the key's passphrase elsewhere"));
    }
    let from = database(cx, name)?.instances.iter().find(|(_, at)| leads_to(&told, at)).map(|(region, _)| region.clone());
    let had_password = told.iter().any(|(key, _)| key == "password");
    // As it stood, where nothing in it is secret.
    let was = if had_password { joined(told.iter().filter(|(key, _)| key != "password")) } else { was };
    Ok(Some(Standing { region: region.clone(), slot, was, had_password, was_slot, from }))
}

fn wanted(cx: &ReadCx, name: &DatabaseName, primary: &RegionName, region: &RegionName) -> Result<SecretString, Refusal> {
    Ok(conninfo(&upstream(cx, name, primary, true)?, &slot_name(region)))
}

fn leads_to(told: &[(String, String)], at: &crate::model::estate::Instance) -> bool {
    let said = |key: &str| told.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
    said("host").or_else(|| said("hostaddr")) == at.host && said("port").unwrap_or_else(|| "5432".to_owned()) == at.port.unwrap_or(5432).to_string()
}

/// `host='a b' port=5432` in its parts, as libpq reads it.
fn parts(conninfo: &str) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), conninfo.trim_start().chars().peekable());
    while rest.peek().is_some() {
        let mut key = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=') {
            key.push(c);
        }
        rest.next();
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = rest.next() {
            match c {
                '\\' => value.extend(rest.next()),
                '\'' if quoted => break,
                c if !quoted && c.is_whitespace() => break,
                c => value.push(c),
            }
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        found.push((key.trim().to_owned(), value));
    }
    found
}

fn joined<'a>(parts: impl Iterator<Item = &'a (String, String)>) -> String {
    let one = |(key, value): &(String, String)| format!("{key}={}", crate::providers::machine::conninfo_value(value));
    parts.map(one).collect::<Vec<_>>().join(" ")
}

async fn lead(cx: &WriteCx, intent: &Intent, standing: &Standing) -> Result<(), ApplyError> {
    let name = intent.database.as_str();
    cx.world()?.cluster_mut(name, intent.primary.as_str())?.make_slot(&standing.slot).await?;
    let wanted = wanted(cx, &intent.database, &intent.primary, &standing.region).map_err(definite)?;
    set(cx, intent, &standing.region, &wanted, &standing.slot).await?;
    if !until_active(cx, intent, &intent.primary, &standing.slot, true).await? {
        // It is told, and may still come: whether it does is for `observe` to say.
        return Ok(());
    }
    let Some(old) = old_slot(intent, standing) else { return Ok(()) };
    if until_active(cx, intent, old, &standing.was_slot, false).await.unwrap_or(false) {
        cx.world()?.cluster_mut(name, old.as_str())?.drop_slot(&standing.was_slot).await?;
    }
    Ok(())
}

/// The region whose server kept the log for it until now.
fn old_slot<'a>(intent: &Intent, standing: &'a Standing) -> Option<&'a RegionName> {
    standing.from.as_ref().filter(|from| **from != intent.primary && !standing.was_slot.is_empty())
}

/// Both settings, and in force. The password goes by the machine's standard input, where there is a machine.
async fn set(cx: &WriteCx, intent: &Intent, region: &RegionName, conninfo: &SecretString, slot: &str) -> Result<(), ApplyError> {
    let name = intent.database.as_str();
    let cluster = cx.world()?.cluster_mut(name, region.as_str())?;
    if instance(cx, &intent.database, region).map_err(definite)?.server.is_none() {
        cluster.set("primary_slot_name", Some(slot)).await?;
        return Ok(cluster.set("primary_conninfo", Some(conninfo.expose_secret())).await?);
    }
    cx.world()?.machine_mut(name, region.as_str())?.make_standby(conninfo, slot).await?;
    Ok(cluster.reload().await?)
}

/// Waits until a slot is in use, or is not; one that is gone is not.
async fn until_active(cx: &ReadCx, intent: &Intent, at: &RegionName, slot: &str, active: bool) -> PortResult<bool> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + STREAM.min(cx.deadline);
    loop {
        let slots = cx.world.cluster(intent.database.as_str(), at.as_str())?.slots().await?;
        if slots.iter().any(|s| s.name == slot && s.active) == active {
            return Ok(true);
        }
        if clock.monotonic() >= until {
            return Ok(false);
        }
        clock.sleep(POLL).await;
    }
}

async fn follows(cx: &ReadCx, intent: &Intent, standing: &Standing) -> PortResult<Seen<()>> {
    let (name, region) = (&intent.database, &standing.region);
    let state = state_of(cx, name, region).await?;
    if state.system_identifier != intent.system_identifier || !state.in_recovery {
        return Ok(Seen::Differs { found: format!("`{region}` is no standby of that cluster any more") });
    }
    let settings = cx.world.cluster(name.as_str(), region.as_str())?.settings(&SETTINGS).await?;
    let wanted = wanted(cx, name, &intent.primary, region).map_err(|r| PortError::Config(r.failure.message))?;
    let is = |setting: &str, value: &str| settings.get(setting).is_some_and(|there| there == value);
    if !is("primary_conninfo", wanted.expose_secret()) || !is("primary_slot_name", &standing.slot) {
        return Ok(Seen::Absent);
    }
    let slots = cx.world.cluster(name.as_str(), intent.primary.as_str())?.slots().await?;
    let used = slots.iter().any(|s| s.name == standing.slot && s.active);
    if !used || !state.streaming || state.timeline < intent.timeline {
        return Ok(pending(100, format!("`{region}` does not stream from `{}` yet", intent.primary)));
    }
    if let Some(old) = old_slot(intent, standing) {
        // One that cannot be asked keeps what it keeps.
        let there = match cx.world.cluster(name.as_str(), old.as_str()) {
            Ok(cluster) => cluster.slots().await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        if there.iter().any(|s| s.name == standing.was_slot && !s.active) {
            return Ok(Seen::Absent);
        }
    }
    Ok(Seen::Done(()))
}

async fn lead_back(cx: &WriteCx, intent: &Intent, standing: &Standing) -> Result<(), ApplyError> {
    let name = intent.database.as_str();
    if let Some(old) = old_slot(intent, standing)
        && state_of(cx, &intent.database, old).await.is_ok()
    {
        cx.world()?.cluster_mut(name, old.as_str())?.make_slot(&standing.was_slot).await?;
    }
    let mut was = standing.was.clone();
    if standing.had_password {
        let up = upstream(cx, &intent.database, &intent.primary, true).map_err(definite)?;
        let password = up.password.as_ref().map(|p| p.expose_secret().to_owned());
        was = format!("{was} password={}", crate::providers::machine::conninfo_value(&password.unwrap_or_default()));
    }
    set(cx, intent, &standing.region, &was.into(), &standing.was_slot).await?;
    if standing.slot == standing.was_slot && standing.from.as_ref() == Some(&intent.primary) {
        return Ok(());
    }
    if until_active(cx, intent, &intent.primary, &standing.slot, false).await? {
        cx.world()?.cluster_mut(name, intent.primary.as_str())?.drop_slot(&standing.slot).await?;
    }
    Ok(())
}

/// West is the new primary, and east follows somebody else.
#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "orders", "primary": "west" })).set(|world| {
        let mut state = world.lock();
        for (region, standby) in [("east", true), ("west", false)] {
            let key = ("orders".to_owned(), region.to_owned());
            let server = state.servers.get_mut(&key).expect("a server");
            (server.state.in_recovery, server.state.timeline, server.state.streaming) = (standby, 2, false);
            let machine = state.machines.get_mut(&key).expect("a machine");
            machine.standby_signal = standby;
            machine.settings.insert("primary_conninfo".into(), "host=old.test port=5432".into());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn it_is_led_to_the_new_primary_and_once_it_follows_nothing_is_done() {
        let mut bench = Bench::new(&fixture());
        let out = bench.run::<Follow>().await.expect("led");
        assert_eq!(out.led, [Led { region: "east".into(), slot: "muster_east".into(), from: None }]);
        let set = bench.world.lock().machines[&("orders".into(), "east".into())].settings["primary_conninfo"].clone();
        assert!(set.contains("host='west.test'") && set.contains("muster_east"), "{set}");
        bench.another_run("0191");
        assert_eq!(bench.run::<Follow>().await.expect("nothing to do"), Output { led: Vec::new(), left: Vec::new() });
    }

    #[tokio::test]
    async fn a_second_primary_and_one_that_follows_no_promotion_are_left_as_they_are() {
        let at = || ("orders".to_owned(), "east".to_owned());
        let bench = Bench::new(&fixture().set(|world| {
            let mut state = world.lock();
            let east = state.machines.get_mut(&("orders".into(), "east".into())).expect("east");
            east.settings.insert("recovery_target_timeline".into(), "1".into());
        }));
        let out = bench.run::<Follow>().await.expect("left");
        assert!(out.led.is_empty() && out.left[0].why.contains("recovery_target_timeline"), "{out:?}");
        bench.world.lock().servers.get_mut(&at()).expect("east").state.in_recovery = false;
        let named = serde_json::from_value(serde_json::json!({ "database": "orders", "primary": "west", "regions": ["east"] })).expect("input");
        assert_eq!(Follow::prepare(&bench.read, named).await.expect_err("refused").failure.code, "not_a_standby");
    }

    #[tokio::test]
    async fn what_it_follows_by_a_uri_is_neither_changed_nor_told() {
        for was in ["postgres://repl:geheim@old.test/db", "host=old.test sslpassword=geheim"] {
            let bench = Bench::new(&fixture());
            let east = ("orders".to_owned(), "east".to_owned());
            bench.world.lock().machines.get_mut(&east).expect("east").settings.insert("primary_conninfo".into(), was.into());
            let with = serde_json::from_value(serde_json::json!({ "database": "orders", "primary": "west" })).expect("input");
            let prepared = Follow::prepare(&bench.read, with).await.expect("left");
            let said = format!("{} {:?} {:?}", serde_json::to_string(&prepared.intent).expect("an intent"), prepared.change, prepared.notes);
            assert!(said.contains("primary_conninfo") && !said.contains("geheim"), "{said}");
        }
    }

    #[test]
    fn a_connection_string_is_read_as_libpq_reads_it_and_told_without_its_password() {
        let told = parts(r"host='db one' port = 5433 password='it\'s' user=repl\ ation application_name=a");
        let of = |key: &str| told.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        assert_eq!([of("host"), of("port"), of("password"), of("user"), of("application_name")], [Some("db one"), Some("5433"), Some("it's"), Some("repl ation"), Some("a")]);
        let public = joined(told.iter().filter(|(key, _)| key != "password"));
        assert_eq!(public, "host='db one' port='5433' user='repl ation' application_name='a'");
        assert!(parts("").is_empty());
    }
}
