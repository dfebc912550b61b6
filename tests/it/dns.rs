//! Dynamic updates against BIND and Knot, each as the primary of the other: what RFC 2136 promises, and what each makes
//! of it.

use super::dns_servers::*;
use muster::providers::{
    clock::{Clock, SystemClock},
    port::*,
    rfc2136::{Settings, Updates},
    tsig::{Algorithm, Key},
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

fn key(name: &str, secret: &str) -> Option<Key> {
    Some(Key::new(name, Algorithm::Sha256, &secret.into()).unwrap())
}

fn updates(primary: SocketAddr, secondaries: &[SocketAddr], key: Option<Key>) -> Updates {
    let secondaries = secondaries.iter().map(ToString::to_string).collect();
    Updates::new(Settings { primary: primary.to_string(), secondaries, key, notify: false }, Arc::new(SystemClock::new()))
}

fn good(primary: SocketAddr) -> Updates {
    updates(primary, &[], key(KEY, SECRET))
}

fn record(name: &str, values: &[&str]) -> RecordSet {
    RecordSet { name: name.into(), kind: "A".into(), ttl_s: 5, values: values.iter().map(|v| (*v).to_owned()).collect() }
}

const BOTH: [Kind; 2] = [Kind::Bind, Kind::Knot];

#[tokio::test]
async fn dns_updates_are_compare_and_swap() {
    for kind in BOTH {
        let server = Authority::primary(kind, &[]);
        let dns = good(server.address);
        let (east, west) = (record(NAME, &["127.0.1.1"]), record(NAME, &["127.0.2.1"]));
        assert_eq!(dns.record(ZONE, NAME, "A").await.unwrap(), Some(east.clone()), "{kind:?}");
        let change = dns.swap(ZONE, Some(&east), Some(&west), "").await.unwrap();
        assert!(dns.in_sync(&change).await.unwrap());
        assert_eq!(dns.record(ZONE, NAME, "A").await.unwrap(), Some(west.clone()), "{kind:?}");
        // Somebody who still believes the old one changes nothing, and is told what is there.
        let lost = dns.swap(ZONE, Some(&east), Some(&record(NAME, &["127.0.3.1"])), "").await.unwrap_err();
        assert!(matches!(&lost, PortError::Conflict { found } if found.contains("127.0.2.1")), "{kind:?}: {lost}");
        assert_eq!(dns.record(ZONE, NAME, "A").await.unwrap(), Some(west), "{kind:?}");
        // A set is the whole of it, in any order.
        let two = dns.record(ZONE, "both.scoring.test", "A").await.unwrap().unwrap();
        assert_eq!(two.values, ["127.0.1.1", "127.0.1.2"]);
        let half = record("both.scoring.test", &["127.0.1.1"]);
        assert!(matches!(dns.swap(ZONE, Some(&half), None, "").await, Err(PortError::Conflict { .. })), "{kind:?}: one of two is not both");
        dns.swap(ZONE, Some(&two), Some(&half), "").await.unwrap();
        assert_eq!(dns.record(ZONE, "both.scoring.test", "A").await.unwrap(), Some(half), "{kind:?}");
    }
}

#[tokio::test]
async fn dns_updates_make_and_remove_what_was_not_there() {
    for kind in BOTH {
        let server = Authority::primary(kind, &[]);
        let dns = good(server.address);
        let new = record("canary.scoring.test", &["127.0.2.1"]);
        assert_eq!(dns.record(ZONE, &new.name, "A").await.unwrap(), None, "{kind:?}");
        dns.swap(ZONE, None, Some(&new), "").await.unwrap();
        assert!(matches!(dns.swap(ZONE, None, Some(&new), "").await, Err(PortError::Conflict { .. })), "{kind:?}: it is there");
        dns.swap(ZONE, Some(&new), None, "").await.unwrap();
        assert_eq!(dns.record(ZONE, &new.name, "A").await.unwrap(), None, "{kind:?}");
        assert!(matches!(dns.swap(ZONE, Some(&new), None, "").await, Err(PortError::Conflict { .. })), "{kind:?}: it is gone");
    }
}

#[tokio::test]
async fn dns_updates_that_are_refused_say_what_to_do() {
    for kind in BOTH {
        let server = Authority::primary(kind, &[]);
        let (east, west) = (record(NAME, &["127.0.1.1"]), record(NAME, &["127.0.2.1"]));
        let cases = [(key(KEY, "d3Jvbmd3cm9uZw=="), "BADSIG"), (key("stranger", SECRET), "BADKEY"), (None, "Refused")];
        for (key, want) in cases {
            let dns = updates(server.address, &[], key);
            let error = dns.swap(ZONE, Some(&east), Some(&west), "").await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, PortError::Refused(_)), "{kind:?} {want}: {text}");
            assert!(text.contains(want) || want == "Refused" && text.contains("update.key"), "{kind:?} {want}: {text}");
            assert!(!text.contains("d3Jvbmd3"), "{text}");
        }
        let dns = good(server.address);
        assert!(matches!(dns.record(ZONE, "alias.scoring.test", "A").await, Err(PortError::Refused(text)) if text.contains("CNAME")));
        assert!(matches!(dns.record(ZONE, "api.other.test", "A").await, Err(PortError::Config(text)) if text.contains("does not lie")));
        let other = record("api.other.test", &["127.0.2.1"]);
        let error = dns.swap("other.test", None, Some(&other), "").await.unwrap_err();
        assert!(matches!(error, PortError::Refused(_)), "{kind:?}: {error}");
        assert_eq!(dns.record(ZONE, NAME, "A").await.unwrap(), Some(east), "{kind:?}: nothing was changed");
        let cache = Resolver::of(server.address, &[]);
        let error = good(cache.address).record(ZONE, NAME, "A").await.unwrap_err();
        assert!(error.to_string().contains("not authoritative"), "{error}");
    }
}

/// An hour ahead.
struct Ahead(SystemClock);

#[async_trait::async_trait]
impl Clock for Ahead {
    fn now(&self) -> jiff::Timestamp {
        self.0.now() + jiff::SignedDuration::from_hours(1)
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
    async fn sleep(&self, length: Duration) {
        self.0.sleep(length).await;
    }
    fn new_id(&self) -> String {
        self.0.new_id()
    }
    fn jitter(&self) -> f64 {
        self.0.jitter()
    }
}

#[tokio::test]
async fn dns_updates_name_a_clock_that_is_wrong() {
    for kind in BOTH {
        let server = Authority::primary(kind, &[]);
        let settings = Settings { primary: server.address.to_string(), secondaries: Vec::new(), key: key(KEY, SECRET), notify: false };
        let dns = Updates::new(settings, Arc::new(Ahead(SystemClock::new())));
        let error = dns.swap(ZONE, Some(&record(NAME, &["127.0.1.1"])), Some(&record(NAME, &["127.0.2.1"])), "").await.unwrap_err();
        assert!(matches!(&error, PortError::Refused(text) if text.contains("BADTIME") && text.contains("clock")), "{kind:?}: {error}");
    }
}

#[tokio::test]
async fn dns_updates_are_done_when_every_server_has_them() {
    for (first, second) in [(Kind::Bind, Kind::Knot), (Kind::Knot, Kind::Bind)] {
        let there = address();
        let primary = Authority::primary(first, &[there]);
        let secondary = Authority::secondary(second, there, primary.address);
        let dns = updates(primary.address, &[there], key(KEY, SECRET));
        let follower = good(there);
        let mut standing = record(NAME, &["127.0.1.1"]);
        wait("the secondary has the zone", || async { follower.record(ZONE, NAME, "A").await.is_ok_and(|r| r.is_some()) }).await;
        let mut times = Vec::new();
        for round in 0..10 {
            let next = record(NAME, &[if round % 2 == 0 { "127.0.2.1" } else { "127.0.1.1" }]);
            let began = Instant::now();
            let change = dns.swap(ZONE, Some(&standing), Some(&next), "").await.unwrap();
            wait("every server has the change", || async { dns.in_sync(&change).await.unwrap() }).await;
            times.push(began.elapsed());
            assert_eq!(follower.record(ZONE, NAME, "A").await.unwrap().unwrap().values, next.values);
            standing = next;
        }
        times.sort();
        eprintln!("{first:?} to {second:?}: a change is on both after {:?} (median of 10), {:?} (longest)", times[5], times[9]);
        // One that hears nothing keeps it from being in sync; one that does not answer leaves it open.
        secondary.signal("STOP");
        let next = record(NAME, &["127.0.9.9"]);
        let change = dns.swap(ZONE, Some(&standing), Some(&next), "").await.unwrap();
        // A thread of it may still have been answering.
        wait("it does not answer any more", || async { matches!(dns.in_sync(&change).await, Err(PortError::Unreachable(_))) }).await;
        secondary.signal("CONT");
        wait("it has caught up", || async { dns.in_sync(&change).await.is_ok_and(|done| done) }).await;
    }
}

/// A primary that takes its time with NOTIFY: told by Muster, the secondary has the change at once, and not a second later.
#[tokio::test]
async fn dns_updates_are_told_to_the_secondaries() {
    for (first, second) in [(Kind::Knot, Kind::Bind), (Kind::Knot, Kind::Knot), (Kind::Bind, Kind::Knot)] {
        let there = address();
        let primary = Authority::primary(first, &[there]);
        let _secondary = Authority::secondary(second, there, primary.address);
        let follower = good(there);
        wait("the secondary has the zone", || async { follower.record(ZONE, NAME, "A").await.is_ok_and(|r| r.is_some()) }).await;
        let mut standing = record(NAME, &["127.0.1.1"]);
        let mut medians = Vec::new();
        for notify in [false, true] {
            let settings =
                Settings { primary: primary.address.to_string(), secondaries: vec![there.to_string()], key: key(KEY, SECRET), notify };
            let dns = Updates::new(settings, Arc::new(SystemClock::new()));
            let mut times = Vec::new();
            for round in 0..5 {
                let next = record(NAME, &[if round % 2 == 0 { "127.0.2.1" } else { "127.0.1.1" }]);
                let next = if next == standing { record(NAME, &["127.0.3.1"]) } else { next };
                let began = Instant::now();
                let change = dns.swap(ZONE, Some(&standing), Some(&next), "").await.unwrap();
                wait("every server has the change", || async { dns.in_sync(&change).await.unwrap() }).await;
                times.push(began.elapsed());
                standing = next;
            }
            times.sort();
            medians.push(times[2]);
        }
        eprintln!("{first:?} to {second:?}: {:?} by the primary's NOTIFY, {:?} by Muster's (medians of 5)", medians[0], medians[1]);
        assert!(first == Kind::Bind || medians[1] < Duration::from_millis(500) && medians[0] > medians[1] * 2, "{medians:?}");
    }
}

async fn wait<F: Future<Output = bool>>(what: &str, done: impl Fn() -> F) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done().await {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn dns_updates_without_an_answer_are_unknown_and_then_seen() {
    for kind in BOTH {
        let server = Authority::primary(kind, &[]);
        let dns = good(server.address);
        let (east, west) = (record(NAME, &["127.0.1.1"]), record(NAME, &["127.0.2.1"]));
        server.signal("STOP");
        let error = dns.swap(ZONE, Some(&east), Some(&west), "").await.unwrap_err();
        assert!(matches!(error, PortError::Unknown(_)), "{kind:?}: {error}");
        server.signal("CONT");
        // It was in the server's queue, and the same again does no harm, whichever came of it.
        wait("the late update is there", || async { dns.record(ZONE, NAME, "A").await.unwrap() == Some(west.clone()) }).await;
        assert!(matches!(dns.swap(ZONE, Some(&east), Some(&west), "").await, Err(PortError::Conflict { .. })));
        drop(server);
        let error = dns.swap(ZONE, Some(&west), Some(&east), "").await.unwrap_err();
        assert!(matches!(error, PortError::Unreachable(_)), "{kind:?}: {error}");
    }
}
