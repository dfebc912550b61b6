//! `wal fetch`: PostgreSQL's `restore_command`. PostgreSQL knows two answers that are not success: "there is no such
//! file", upon which a recovery *ends*, and trouble, upon which it stops and can be begun again. To take one for the
//! other loses data in silence. So [`Fetched::Absent`] is said only when the repository answered, has no such file, and
//! has none that comes after it either; everything else is trouble.

use super::{
    super::{Muster, ServiceError, backup::place::Where},
    ahead::{Ahead, place},
    cluster::system_of,
};
use crate::repository::{
    RepositoryError,
    wal::{self, WalStore},
    wal_history::History,
    wal_name::{self, Segment, SegmentName, WalName},
    wal_page,
};
use futures::{StreamExt, stream};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// More at once gain nothing.
const AT_ONCE: usize = 8;

#[derive(Clone, Debug, Default)]
pub struct Fetch {
    pub at: Where,
    /// `%f`.
    pub name: String,
    /// `%p`.
    pub to: PathBuf,
    pub system: Option<String>,
    /// How many segments behind it are fetched as well.
    pub ahead: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fetched {
    Whole,
    /// It was fetched with one before it.
    Ahead,
    /// There is only the beginning of it: the log ends in it.
    Beginning,
    /// There is no such file, and nothing behind it.
    Absent,
}

impl Muster {
    pub async fn wal_fetch(&self, ask: &Fetch) -> Result<Fetched, ServiceError> {
        let name: SegmentName = ask.name.parse().map_err(ServiceError::Usage)?;
        let wrong = |why: std::io::Error| ServiceError::Repository(RepositoryError::File { path: ask.to.clone(), why: why.to_string() });
        let ahead = Ahead::beside(&ask.to);
        if let SegmentName::Whole(segment) = name
            && ahead.take(&segment.to_string(), &ask.to).map_err(wrong)?
        {
            return Ok(Fetched::Ahead);
        }
        let system = system_of(&ask.to, ask.system.as_deref())?;
        let opened = self.backup_open(&ask.at).await?;
        let wal = WalStore::new(opened.repository.clone(), opened.store, system)?;
        let SegmentName::Whole(segment) = name else {
            let Some(content) = wal.get(&name).await? else { return Ok(Fetched::Absent) };
            return place(&ask.to, &content).map(|()| Fetched::Whole).map_err(wrong);
        };
        if let Some(content) = wal.get(&name).await? {
            let size = checked(&wal, segment, &content, true).await?;
            place(&ask.to, &content).map_err(wrong)?;
            drop(content);
            fetch_ahead(&wal, segment, size, &ahead, ask.ahead).await;
            return Ok(Fetched::Whole);
        }
        let beginning = wal.get_pieces(segment).await?;
        if let Some(later) = later(&opened.repository, wal.system_identifier(), segment).await? {
            return Err(missing(segment, later));
        }
        let Some(mut content) = beginning else { return Ok(Fetched::Absent) };
        let size = checked(&wal, segment, &content, false).await?;
        // It may have become whole just now.
        if let Some(whole) = wal.get(&name).await? {
            place(&ask.to, &whole).map_err(wrong)?;
            return Ok(Fetched::Whole);
        }
        content.resize(size as usize, 0);
        place(&ask.to, &content).map_err(wrong)?;
        Ok(Fetched::Beginning)
    }
}

fn missing(segment: Segment, later: Segment) -> ServiceError {
    RepositoryError::Refused(format!(
        "segment {segment} is not there, or only its beginning, and {later}, which comes after it, is: the log has a gap, and a recovery \
         that ended here would lose what lies behind it. `muster wal status` shows what there is"
    ))
    .into()
}

/// A segment of the same timeline that comes after this one.
async fn later(repository: &crate::repository::open::Repository, system: &str, segment: Segment) -> Result<Option<Segment>, ServiceError> {
    let folder = format!("{}{:08X}/", wal_name::folder(system), segment.timeline);
    let listed = wal::list(repository, &folder).await?;
    let segments = listed.iter().filter_map(|one| match one.name {
        WalName::File(SegmentName::Whole(other)) => Some(other),
        WalName::Piece(piece) => Some(piece.segment),
        WalName::File(_) => None,
    });
    Ok(segments.filter(|other| *other > segment).min())
}

/// What is given to a server is what its name says; gives the size of segments.
async fn checked(wal: &WalStore, segment: Segment, content: &[u8], whole: bool) -> Result<u32, ServiceError> {
    let damaged = |why| RepositoryError::damaged(wal.key(&WalName::File(SegmentName::Whole(segment))), why);
    let page = wal_page::first_page(content).map_err(damaged)?;
    let history = match page.timeline == segment.timeline {
        true => None,
        false => match wal.get(&SegmentName::History(segment.timeline)).await? {
            Some(content) => History::parse(segment.timeline, &content).ok(),
            None => None,
        },
    };
    wal_page::check(&segment, content, whole, history.as_ref()).map_err(damaged)?;
    Ok(page.segment_size)
}

/// What goes wrong here will be told when it is asked for.
async fn fetch_ahead(wal: &WalStore, segment: Segment, size: u32, ahead: &Ahead, count: u64) {
    let number = segment.number(size);
    let next = (1..=count).map(|more| Segment::of_number(segment.timeline, number + more, size));
    let next: Vec<Segment> = next.filter(|segment| !ahead.has(&segment.to_string())).collect();
    let each = stream::iter(next).map(|segment| async move {
        let Ok(Some(content)) = wal.get(&SegmentName::Whole(segment)).await else { return };
        if wal_page::check(&segment, &content, true, None).is_ok() {
            // No room for it now: then it is fetched when it is asked for.
            let _ = ahead.keep(&segment.to_string(), &content);
        }
    });
    each.buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Is this the path of a program or file that a shell can be given without quoting?
#[must_use]
pub fn quoted(text: &Path) -> String {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
