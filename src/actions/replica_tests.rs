//! Each state from what two servers say of themselves.

use super::*;
use std::{collections::BTreeMap, time::Duration};

fn at(ms: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(1_767_225_600_000 + ms).unwrap()
}

fn primary(position: u64, ms: i64) -> ServerState {
    ServerState {
        in_recovery: false,
        timeline: 1,
        position: Lsn(position),
        received: None,
        replay_paused: false,
        streaming: false,
        last_message: None,
        last_replayed: None,
        read_only: false,
        now: at(ms),
        system_identifier: "1".into(),
    }
}

fn standby(replayed: u64, received: u64, ms: i64) -> ServerState {
    ServerState {
        in_recovery: true,
        received: Some(Lsn(received)),
        streaming: true,
        last_message: Some(at(ms)),
        last_replayed: Some(at(0)),
        ..primary(replayed, ms)
    }
}

struct Case {
    first: ServerState,
    second: ServerState,
    primary: Option<(ServerState, ServerState)>,
    here: Replication,
    there: Replication,
}

impl Case {
    /// All in step.
    fn new() -> Self {
        let (first, second) = (standby(100, 100, 1_000), standby(200, 200, 1_500));
        let primary = Some((primary(100, 900), primary(200, 1_400)));
        Self { first, second, primary, here: Replication::default(), there: Replication::default() }
    }
    fn judged(&self) -> ReplicaState {
        let primary = self.primary.as_ref().map(|(a, b)| (a, b));
        judge(&Sight { first: &self.first, second: &self.second, primary, here: &self.here, there: &self.there })
    }
    fn cause(&self) -> Option<Cause> {
        self.judged().trouble().map(|(cause, why, cure)| {
            assert!(!why.is_empty() && !cure.is_empty());
            cause
        })
    }
    fn with(change: impl FnOnce(&mut Self)) -> Option<Cause> {
        let mut case = Self::new();
        change(&mut case);
        case.cause()
    }
}

fn slots(status: &str) -> Option<Vec<Slot>> {
    Some(vec![Slot { name: "west".into(), wal_status: Some(status.into()), ..Slot::default() }])
}

#[test]
fn each_cause_is_told_apart() {
    assert_eq!(Case::new().judged(), ReplicaState::Streaming { lag_bytes: Some(0), lag_ms: Some(0) });
    assert_eq!(Case::with(|c| c.second.in_recovery = false), Some(Cause::NoStandby));
    assert_eq!(Case::with(|c| c.second.system_identifier = "2".into()), Some(Cause::AnotherCluster));
    assert_eq!(Case::with(|c| c.second.timeline = 2), Some(Cause::WrongTimeline));
    assert_eq!(Case::with(|c| c.first.position = Lsn(300)), Some(Cause::AheadOfPrimary));
    assert_eq!(Case::with(|c| c.second.replay_paused = true), Some(Cause::ReplayPaused));
    assert_eq!(Case::with(|c| c.second.last_message = Some(at(-40_000))), Some(Cause::ReceiverSilent));
    let paused_by_settings = |c: &mut Case| {
        c.second.replay_paused = true;
        c.here.limits = BTreeMap::from([("max_connections".into(), 50)]);
        c.there.limits = BTreeMap::from([("max_connections".into(), 100)]);
    };
    assert_eq!(Case::with(paused_by_settings), Some(Cause::SettingsTooLow));
    let stuck = |c: &mut Case| c.second.position = Lsn(100);
    assert_eq!(Case::with(stuck), Some(Cause::ReplayStuck));
    let conflict = |c: &mut Case| {
        stuck(c);
        c.here.waits_for = Some("RecoveryConflictSnapshot".into());
    };
    assert_eq!(Case::with(conflict), Some(Cause::RecoveryConflict));
    let late_on_purpose = |c: &mut Case| {
        stuck(c);
        c.here.waits_for = Some("RecoveryApplyDelay".into());
    };
    assert_eq!(Case::with(late_on_purpose), None);
    let receives_nothing = |c: &mut Case| c.second = standby(100, 100, 1_500);
    assert_eq!(Case::with(receives_nothing), Some(Cause::ReceiverStuck));
}

#[test]
fn why_nobody_is_connected_is_told_by_the_primary() {
    let without = |change: &dyn Fn(&mut Case)| {
        Case::with(|c| {
            c.second.streaming = false;
            c.here.follows = Some(true);
            c.here.slot = Some("west".into());
            change(c);
        })
    };
    assert_eq!(without(&|_| {}), Some(Cause::NoReceiver));
    assert_eq!(without(&|c| c.here.refused = true), Some(Cause::NotTold));
    assert_eq!(without(&|c| c.there.slots = Some(Vec::new())), Some(Cause::SlotMissing));
    assert_eq!(without(&|c| c.there.slots = slots("lost")), Some(Cause::SlotLost));
    assert_eq!(without(&|c| c.there.slots = slots("reserved")), Some(Cause::NoReceiver));
    assert_eq!(without(&|c| c.here.follows = Some(false)), Some(Cause::NotConfigured));
    let archive = |c: &mut Case| (c.here.follows, c.here.restores) = (Some(false), Some(true));
    assert_eq!(without(&archive), Some(Cause::ArchiveOnly));
    let removed = |c: &mut Case| (c.there.oldest_segment, c.there.segment_bytes) = (Some(3), Some(64));
    assert_eq!(
        without(&|c| {
            removed(c);
            c.second.received = Some(Lsn(191));
            c.second.position = Lsn(100)
        }),
        Some(Cause::WalRemoved)
    );
    assert_eq!(
        without(&|c| {
            removed(c);
            c.second.received = Some(Lsn(192))
        }),
        Some(Cause::NoReceiver)
    );
}

#[test]
fn a_timeline_of_the_primarys_history_is_no_wrong_one_up_to_where_it_was_left() {
    let on_old = |history: Option<Vec<(u32, Lsn)>>, position: u64| {
        Case::with(|c| {
            let (before, now) = c.primary.as_mut().unwrap();
            (before.timeline, now.timeline) = (2, 2);
            now.position = Lsn(1_000);
            c.second.position = Lsn(position);
            c.there.history = history;
        })
    };
    assert_eq!(on_old(Some(vec![(1, Lsn(250))]), 200), None);
    assert_eq!(on_old(Some(vec![(1, Lsn(150))]), 200), Some(Cause::WrongTimeline));
    assert_eq!(on_old(Some(vec![(7, Lsn(150))]), 200), Some(Cause::WrongTimeline));
    assert_eq!(on_old(None, 200), None, "it was not told, and it streams");
}

/// The standby's clock an hour ahead, or an hour behind: the lag is that by the primary's.
#[test]
fn clocks_that_differ_are_no_lag() {
    for skew in [3_600_000, 0, -3_600_000] {
        let mut case = Case::new();
        for look in [&mut case.first, &mut case.second] {
            look.now += Duration::from_millis(7_200_000);
            look.now -= Duration::from_millis(u64::try_from(7_200_000 - skew).unwrap());
            look.last_message = Some(look.now);
        }
        case.primary.as_mut().unwrap().1.position = Lsn(260);
        assert_eq!(
            case.judged(),
            ReplicaState::Streaming { lag_bytes: Some(60), lag_ms: Some(500) },
            "reached what was written 500 ms ago"
        );
        // Not even what the first look at the primary showed: then since the last commit that it has.
        case.primary.as_mut().unwrap().0.position = Lsn(250);
        assert_eq!(case.judged(), ReplicaState::Streaming { lag_bytes: Some(60), lag_ms: Some(1_400) });
        let noted = notes(&Sight {
            first: &case.first,
            second: &case.second,
            primary: case.primary.as_ref().map(|(a, b)| (a, b)),
            here: &case.here,
            there: &case.there,
        });
        assert_eq!(noted.iter().any(|n| n.what == "clock_skew"), skew != 0, "{noted:?}");
        // Without a primary: by what the primary's last message said.
        case.primary = None;
        case.second.received = Some(Lsn(260));
        assert_eq!(case.judged().lag_ms(), None);
        case.here.receiver = Some(Receiver { last_sent: Some(at(700)), ..Receiver::default() });
        assert_eq!(case.judged().lag_ms(), Some(700));
    }
}

#[test]
fn what_is_not_known_is_never_zero() {
    let mut case = Case::new();
    case.primary = None;
    (case.second.received, case.second.last_replayed) = (None, None);
    assert_eq!(case.judged(), ReplicaState::Streaming { lag_bytes: None, lag_ms: None });
    case.second.received = Some(Lsn(900));
    assert_eq!(case.judged(), ReplicaState::Streaming { lag_bytes: Some(700), lag_ms: None });
}

#[test]
fn a_long_wait_before_a_promotion_is_noted() {
    let told = |ms| retry_note(&Replication { retry_interval_ms: Some(ms), ..Replication::default() });
    assert!(told(5_000).is_some_and(|note| note.detail.contains("5000 ms")) && told(200).is_none());
    assert!(retry_note(&Replication::default()).is_none());
}
