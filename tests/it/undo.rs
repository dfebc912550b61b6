//! What a run has changed in DNS is put back exactly, and once, whatever becomes of the answers to its undoing: against two
//! emulators of Route 53 that nobody of Muster wrote, behind the proxy that loses answers.

use super::{
    rds_stage::Which,
    route53::{Bench, book},
    route53_servers::{Fault, WEST},
};

const SHIFT: &str = "uses: dns.shift\n    with: { endpoint: inference, to: west }";
const LOWER: &str = "uses: dns.lower_ttl\n    with: { endpoint: inference, ttl: 1s }";

/// What becomes of the first attempt at the change back.
#[derive(Clone, Copy, Debug)]
enum Weather {
    AnswerLost,
    /// The provider itself sends it six times before it gives up.
    Throttled,
    Killed,
}

async fn undone(which: Which, step: &str, weather: Weather) {
    let bench = Bench::new(which, 2).await;
    if step == SHIFT {
        bench.answers.moves_to(WEST);
    }
    let before = bench.sets().await;
    book(&bench.place, step, true);
    // The first in line is for the change itself.
    let there = || bench.proxy.fault("/rrset", Fault::Nothing);
    let said = match weather {
        Weather::AnswerLost => {
            there();
            bench.proxy.fault("/rrset", Fault::AnswerLost);
            bench.run()
        }
        Weather::Throttled => {
            there();
            (0..6).for_each(|_| bench.proxy.fault("/rrset", Fault::Throttled("Throttling")));
            bench.run()
        }
        Weather::Killed => bench.killed_at("/rrset", 2).await,
    };
    let about = format!("{which:?}, {step}, {weather:?}");
    let said = said.expect(1);
    assert_eq!(said.statuses(), ["undone", "failed"], "{about}");
    assert!(!said.last()["reason"].as_str().unwrap().contains("not everything"), "{about}: {}", said.last());
    assert_eq!((bench.sets().await, bench.proxy.changes("/rrset")), (before, 2), "{about}: there and back, and no more");
    let events = tokio::task::block_in_place(|| bench.place.muster(&["show", &said.run()])).expect(0).out;
    assert!(matches!(weather, Weather::Killed) || events.contains("undo_retry"), "{about}: nobody noticed");
}

async fn all(which: Which) {
    for step in [SHIFT, LOWER] {
        for weather in [Weather::AnswerLost, Weather::Throttled, Weather::Killed] {
            undone(which, step, weather).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_put_back_once_whatever_becomes_of_the_answer_on_moto() {
    all(Which::Moto).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_put_back_once_whatever_becomes_of_the_answer_on_ministack() {
    all(Which::MiniStack).await;
}
