//! Why a replica does not stream, in words that machines can hold on to, each with its cure.

use super::replica::Sight;
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    ReplayPaused,
    SettingsTooLow,
    RecoveryConflict,
    ReplayStuck,
    ReceiverStuck,
    ReceiverSilent,
    NoStandby,
    NoReceiver,
    NotConfigured,
    ArchiveOnly,
    SlotMissing,
    SlotLost,
    WalRemoved,
    WrongTimeline,
    AheadOfPrimary,
    AnotherCluster,
    SubscriptionDisabled,
    CannotAsk,
    NotTold,
    NoPrimary,
}

#[must_use]
pub fn cure(cause: Cause) -> &'static str {
    match cause {
        Cause::ReplayPaused => "SELECT pg_wal_replay_resume() on the standby, once whoever paused it agrees",
        Cause::SettingsTooLow => "raise these settings on the standby to the primary's at least, and restart it",
        Cause::RecoveryConflict => "end the long queries on the standby, or lower max_standby_streaming_delay",
        Cause::ReplayStuck => "look at the standby's log and disk: its startup process does not get on",
        Cause::ReceiverStuck => {
            "look at the network between the two, and at the standby's WAL receiver; ending that process makes it connect anew"
        }
        Cause::ReceiverSilent => "look at the network between the two; ending the standby's WAL receiver makes it connect anew",
        Cause::NoStandby => {
            "if it was promoted by mistake, make it a standby again (pg_rewind, or a new base backup); if it is the new primary, verify the other one"
        }
        Cause::NoReceiver => "see the standby's log for why it cannot connect: address, password, pg_hba.conf, max_wal_senders",
        Cause::NotConfigured => "set primary_conninfo on the standby and reload it",
        Cause::ArchiveOnly => "it lives on the archive alone; set primary_conninfo on it if it shall stream",
        Cause::SlotMissing => {
            "create the slot on the primary: SELECT pg_create_physical_replication_slot('NAME'); if the log is gone meanwhile, make the standby anew"
        }
        Cause::SlotLost => {
            "the primary has thrown away log that the standby needs: drop the slot and make the standby anew from a base backup, or let it restore from the archive; raise max_slot_wal_keep_size"
        }
        Cause::WalRemoved => {
            "make the standby anew from a base backup, or give it a restore_command; and a slot, so that it does not happen again"
        }
        Cause::WrongTimeline => {
            "keep what only it has if that matters, then pg_rewind it to the primary, or make it anew from a base backup"
        }
        Cause::AheadOfPrimary => {
            "the primary is older than the standby (restored from a backup, or the wrong one): find out which of the two is right before anything else"
        }
        Cause::AnotherCluster => {
            "the estate, or the standby, points at the wrong server: correct that, or make the standby anew from a base backup of this primary"
        }
        Cause::SubscriptionDisabled => "ALTER SUBSCRIPTION NAME ENABLE on the subscriber",
        Cause::CannotAsk => "make the server reachable, and let Muster's user in",
        Cause::NotTold => "GRANT pg_monitor to the user that Muster connects as",
        Cause::NoPrimary => "make a primary reachable: without one neither the lag nor the content can be judged",
    }
}

/// Settings in which a standby is below its primary, which stops replay.
pub(crate) fn lower(standby: &BTreeMap<String, i64>, primary: &BTreeMap<String, i64>) -> Vec<String> {
    let below = |(name, value): (&String, &i64)| {
        let here = standby.get(name).filter(|here| *here < value)?;
        Some(format!("{name} is {here} and the primary's {value}"))
    };
    primary.iter().filter_map(below).collect()
}

/// The primary's slot for this standby, as the standby names it.
pub(crate) fn slot<'a>(sight: &'a Sight<'_>) -> Option<&'a Slot> {
    let name = name(sight)?;
    sight.there.slots.as_ref()?.iter().find(|slot| slot.name == name)
}

fn name<'a>(sight: &'a Sight<'_>) -> Option<&'a str> {
    sight.here.slot.as_deref().or(sight.here.receiver.as_ref().and_then(|r| r.slot.as_deref()))
}

/// It receives nothing: what does the primary say to that?
pub(crate) fn no_receiver(sight: &Sight<'_>) -> (Cause, String) {
    let (here, there) = (sight.here, sight.there);
    if here.follows == Some(false) {
        return match here.restores {
            Some(true) => (Cause::ArchiveOnly, "it is not told where its primary is, and restores from an archive".into()),
            _ => (Cause::NotConfigured, "it is not told where its primary is (primary_conninfo is empty)".into()),
        };
    }
    if let (Some(name), Some(slots)) = (name(sight), &there.slots) {
        match slots.iter().find(|slot| slot.name == name) {
            None => return (Cause::SlotMissing, format!("the slot `{name}` that it uses is not there on the primary")),
            Some(slot) if slot.wal_status.as_deref() == Some("lost") => {
                return (Cause::SlotLost, format!("the slot `{name}` that it uses is lost: the log that it needs is gone"));
            }
            Some(_) => {}
        }
    }
    let needs = sight.second.received.unwrap_or_default().max(sight.second.position);
    if let (Some(oldest), Some(bytes)) = (there.oldest_segment, there.segment_bytes.filter(|bytes| *bytes > 0))
        && needs.0 / bytes < oldest
    {
        let first = Lsn(oldest.saturating_mul(bytes));
        return (Cause::WalRemoved, format!("it needs the log from {needs}, and the primary's begins at {first}"));
    }
    let status = here.receiver.as_ref().and_then(|r| r.status.as_deref()).map(|s| format!(" (its receiver is `{s}`)")).unwrap_or_default();
    let slot = match slot(sight) {
        Some(slot) if !slot.active => format!("; its slot `{}` on the primary is not in use", slot.name),
        _ => String::new(),
    };
    let primary = if sight.primary.is_some() { "" } else { ", and no primary answers us either" };
    (Cause::NoReceiver, format!("no receiver is connected to a primary{status}{slot}{primary}"))
}
