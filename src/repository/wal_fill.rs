//! The log that a recovery needs, put into the server's own folder beforehand: many segments at a time, and without the
//! server having to reach the repository. For copies that Muster starts itself; it takes as much room as there is log.

use super::{
    RepositoryError, Result,
    open::Repository,
    recovery::{Cluster, Recovery},
    wal,
    wal_line::look,
    wal_name::{self, Piece, Segment, SegmentName, WalName, cover},
    wal_page,
};
use futures::{TryStreamExt, stream};
use std::path::{Path, PathBuf};

const AT_ONCE: usize = 4;

/// Puts the segments and the histories into `pg_wal/` of a restored folder. Gives how many segments.
pub async fn fill(repository: &Repository, cluster: &Cluster, recovery: &Recovery, data: &Path) -> Result<u64> {
    let folder = data.join("pg_wal");
    let wrong = |why: String| RepositoryError::File { path: folder.clone(), why };
    std::fs::create_dir_all(&folder).map_err(|e| wrong(e.to_string()))?;
    let needed = recovery.reach.needed.len() as u64 * u64::from(cluster.segment_size);
    let room = rustix::fs::statvfs(&folder).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
    if room < needed {
        return Err(wrong(format!("{needed} bytes of log are to be written and {room} are free: make room, or restore elsewhere")));
    }
    let line = look(repository, &cluster.system, cluster.segment_size).await?;
    for timeline in line.histories.keys().filter(|timeline| **timeline <= recovery.reach.timeline) {
        let name = WalName::File(SegmentName::History(*timeline));
        let content = wal::open(repository, &wal_name::key(&cluster.system, &name)).await?;
        write(&folder.join(name.to_string()), &content).map_err(|e| wrong(e.to_string()))?;
    }
    let each = recovery.reach.needed.iter().map(|segment| {
        let number = segment.number(cluster.segment_size);
        let have = line.timelines.get(&segment.timeline);
        let whole = have.is_some_and(|have| have.whole.contains(&number));
        let pieces = have.and_then(|have| have.pieces.get(&number)).map(|pieces| cover(pieces)).unwrap_or_default();
        (*segment, whole, pieces)
    });
    let each: Vec<(Segment, bool, Vec<Piece>)> = each.collect();
    let count = each.len() as u64;
    let (system, size, folder) = (cluster.system.as_str(), cluster.segment_size, folder.as_path());
    // Of the last one there may be more by now than when it was decided how far to go.
    let cut = recovery.reach.needed.last().copied().zip(recovery.reach.last_piece);
    let all = stream::iter(each.into_iter().map(Ok::<_, RepositoryError>));
    all.try_for_each_concurrent(AT_ONCE, |(segment, whole, pieces)| async move {
        let mut content = one(repository, system, size, segment, whole, &pieces).await?;
        if let Some((_, length)) = cut.filter(|(last, _)| *last == segment) {
            content.iter_mut().skip(length as usize).for_each(|byte| *byte = 0);
        }
        let path = folder.join(segment.to_string());
        let written = tokio::task::spawn_blocking(move || write(&path, &content)).await;
        let written = written.map_err(|e| RepositoryError::Interrupted(e.to_string()))?;
        written.map_err(|e| RepositoryError::File { path: folder.to_owned(), why: e.to_string() })
    })
    .await?;
    Ok(count)
}

/// A segment as it was, or as much of it as there is, and zeros.
async fn one(repository: &Repository, system: &str, size: u32, segment: Segment, whole: bool, pieces: &[Piece]) -> Result<Vec<u8>> {
    let key = wal_name::key(system, &WalName::File(SegmentName::Whole(segment)));
    let content = if whole {
        wal::open(repository, &key).await?
    } else {
        let mut all = Vec::new();
        for piece in pieces {
            let content = wal::open(repository, &wal_name::key(system, &WalName::Piece(*piece))).await?;
            let skip = all.len().saturating_sub(piece.from as usize);
            all.extend_from_slice(content.get(skip..).unwrap_or_default());
        }
        all.resize(size as usize, 0);
        all
    };
    let page = wal_page::first_page(&content).map_err(|why| RepositoryError::damaged(&key, why))?;
    if page.position != segment.start(size) || content.len() != size as usize {
        return Err(RepositoryError::damaged(&key, "it is not what its name says"));
    }
    Ok(content)
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let incomplete = PathBuf::from(format!("{}.muster-tmp", path.display()));
    std::fs::write(&incomplete, content)?;
    std::fs::rename(&incomplete, path)
}
