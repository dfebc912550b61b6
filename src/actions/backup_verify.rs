//! `backup.verify`: is everything there that a repository's snapshots need, and is it what was written?
//!
//! It reads only. The structure is always looked at; with `read_data`, so many of a hundred packs are read and every
//! chunk in them is decrypted and compared with its name. Which packs, the run's key decides: another run reads others.

use super::{contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::repository::verify::{Depth, Verified, verify};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// How many percent of the packs are read: 0 looks at the structure alone, 100 reads all.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub read_data: u8,
    /// Only this snapshot, by the beginning of its identifier, or `latest`; all of them when left out.
    #[serde(default)]
    pub snapshot: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub snapshots: u64,
    pub files: u64,
    /// Packs of which every byte was read.
    pub packs_read: u64,
    pub chunks_read: u64,
    pub bytes_read: u64,
}

/// So much is told by name.
const TOLD: usize = 5;

pub struct Verify;

impl Action for Verify {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.verify",
            version: 1,
            summary: "Check that a repository holds what its snapshots need",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(6 * 3600),
            example: "id: verify\nuses: backup.verify\nwith: { repository: vault, read_data: 10 }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_vault(with, "repository", estate)
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        named(cx, &input.repository)?;
        if input.read_data > 100 {
            return Err(Refusal::no("input", format!("`read_data: {}` is more than all of it: write 0 to 100", input.read_data)));
        }
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, input: &Input) -> Result<Output, ApplyError> {
        let (repository, watched) = (open(&cx.read, &input.repository).await.map_err(definite)?, Watched::new());
        let only = match &input.snapshot {
            Some(name) => Some(vec![repository.snapshot(name).await?]),
            None => None,
        };
        let depth = match input.read_data {
            0 => Depth::Structure,
            100.. => Depth::All,
            percent => Depth::Share(percent),
        };
        let chance = *blake3::hash(cx.read.key.as_bytes()).as_bytes();
        let found = verify(repository, only, depth, chance, watched.0.clone()).await?;
        if !found.is_good() {
            return Err(ApplyError::Definite(damaged(&found)));
        }
        let Verified { snapshots, files, packs, chunks, bytes_read, .. } = found;
        Ok(Output { snapshots, files, packs_read: packs, chunks_read: chunks, bytes_read })
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn damaged(found: &Verified) -> Failure {
    let touched = found.touched.iter().map(|t| format!("{} of snapshot {}: {}", t.path, t.snapshot.short(), t.why));
    let all: Vec<String> = found.problems.iter().cloned().chain(touched).collect();
    let more = if all.len() > TOLD { format!("; and {} more", all.len() - TOLD) } else { String::new() };
    let told: Vec<&str> = all.iter().take(TOLD).map(String::as_str).collect();
    let message =
        format!("{} objects are damaged, {} files are touched: {}{more}", found.problems.len(), found.touched.len(), told.join("; "));
    Failure::new("damaged", message)
        .remedy("`muster backup verify --read-data` names all: once what is damaged is taken away, the next `backup.create` stores anew what its source still has")
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_vault(serde_json::json!({ "repository": "vault", "read_data": 100 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture, with_vault};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_damaged_is_named() {
        let bench = Bench::new(&fixture());
        let good = bench.run::<Verify>().await.expect("verified");
        assert!(good.snapshots == 2 && good.packs_read > 0, "{good:?}");
        bench.world.damage_pack();
        let failure = bench.failed::<Verify>().await;
        assert!(failure.code == "damaged" && failure.message.contains("packs/") && failure.message.contains(".yaml"), "{failure}");
        // The structure alone tells nothing of bytes that are wrong.
        let shallow = Bench::new(&with_vault(json!({ "repository": "vault" })));
        shallow.world.damage_pack();
        assert_eq!(shallow.run::<Verify>().await.expect("verified").packs_read, 0);
    }

    #[tokio::test]
    async fn where_there_is_no_repository_it_says_so() {
        let bench = Bench::new(&Fixture::new(json!({ "repository": "vault" })));
        assert_eq!(bench.failed::<Verify>().await.code, "no_repository");
        let bench = Bench::new(&with_vault(json!({ "repository": "vault", "read_data": 101 })));
        assert_eq!(bench.refused::<Verify>().await, "input");
    }
}
