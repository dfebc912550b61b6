//! Which repository a command means, and what opens it.
//!
//! A repository is named by `--repo`: a URL, a path, or a name in the estate, whose region then says how S3 is reached.
//! The secret comes from `--key-file`, `--password-file`, the environment, or the estate, in that order. The estate is
//! read only when something in it is needed: a restore works without one (rule 7).

use super::super::{Muster, ServiceError};
use super::restore_cluster::{RepoWord, SecretFile};
use crate::model::time::Span;
use crate::model::{
    estate::{Aws, Compression, Repository as Named, SecretRef},
    ids::RegionName,
};
use crate::plan::proof::PROOF_VALID;
use crate::providers::{port::ObjectWrite, secrets, store};
use crate::repository::{keys::Unlock, open::Repository};
use secrecy::SecretBox;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const PASSWORD: &str = "MUSTER_REPO_PASSWORD";
/// More than any key: a larger file is not one.
const LARGEST_KEY: u64 = 64 * 1024;

/// What a person said of the repository.
#[derive(Clone, Debug, Default)]
pub struct Where {
    pub repo: Option<String>,
    pub password_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// For what is written: before what the estate says of the repository.
    pub compression: Option<Compression>,
}

/// A place that may hold a repository, and the secret for it. Nothing has been contacted yet.
pub(super) struct Place {
    pub store: Arc<dyn ObjectWrite>,
    /// For messages.
    pub name: String,
    pub unlock: Unlock,
    pub compression: Compression,
}

/// A repository that is open, and the store behind it for writing.
pub(in crate::service) struct Opened {
    pub repository: Arc<Repository>,
    pub store: Arc<dyn ObjectWrite>,
}

impl Place {
    pub(super) async fn open(&self) -> Result<Opened, ServiceError> {
        let repository = Repository::open(self.store.clone(), &self.name, &self.unlock).await?;
        Ok(Opened { repository: Arc::new(repository.compressing(self.compression)), store: self.store.clone() })
    }
}

impl Muster {
    pub(super) fn backup_place(&self, at: &Where) -> Result<Place, ServiceError> {
        let (url, named) = self.backup_named(at.repo.as_deref())?;
        let store = self.backup_store_of(&url, named.as_ref())?;
        let unlock = unlock(at, named.as_ref())?;
        let compression = at.compression.or(named.and_then(|named| named.compression)).unwrap_or_default();
        Ok(Place { store, name: url, unlock, compression })
    }

    /// A place for a repository without its secret, and its URL or path.
    pub(super) fn backup_store(&self, repo: &str) -> Result<(Arc<dyn ObjectWrite>, String), ServiceError> {
        let (url, named) = self.backup_named(Some(repo))?;
        Ok((self.backup_store_of(&url, named.as_ref())?, url))
    }

    fn backup_store_of(&self, url: &str, named: Option<&Named>) -> Result<Arc<dyn ObjectWrite>, ServiceError> {
        let region = named.and_then(|named| named.region.as_ref());
        let aws = region.map(|region| self.backup_aws(region)).transpose()?.flatten();
        Ok(store::open(url, aws.as_ref())?)
    }

    /// A bucket that is no repository: backed up, or restored into. If the estate has it, its region says how to reach it.
    pub(super) fn backup_objects(&self, url: &str) -> Result<Arc<dyn ObjectWrite>, ServiceError> {
        let name = url.strip_prefix("s3://").unwrap_or(url).split('/').next().unwrap_or_default();
        let estate = self.written_estate()?;
        let places = estate.buckets.values().flatten();
        let region = places.into_iter().find(|(_, place)| place.bucket == name).map(|(region, _)| region);
        let aws = region.map(|region| self.backup_aws(region)).transpose()?.flatten();
        Ok(store::open(url, aws.as_ref())?)
    }

    pub(in crate::service) async fn backup_open(&self, at: &Where) -> Result<Opened, ServiceError> {
        self.backup_place(at)?.open().await
    }

    /// How the repository and the file that opens it are named on a command line that a server runs later.
    pub(super) fn backup_secret_file(&self, at: &Where) -> Result<(RepoWord, SecretFile), ServiceError> {
        let (url, named) = self.backup_named(at.repo.as_deref())?;
        let word = match (&named, url.contains("://")) {
            // Its region says how to reach it: by its name in the estate.
            (Some(named), true) if named.region.is_some() => RepoWord::Word(match &at.repo {
                Some(name) => name.clone(),
                None => self.repositories()?.into_keys().next().map(|name| name.to_string()).unwrap_or_default(),
            }),
            (_, true) => RepoWord::Word(url),
            (_, false) => RepoWord::Path(url.into()),
        };
        let file = match (&at.key_file, &at.password_file, named.and_then(|named| named.password)) {
            (Some(file), _, _) => SecretFile::Key(file.clone()),
            (None, Some(file), _) => SecretFile::Password(file.clone()),
            (None, None, Some(SecretRef::File(file))) if std::env::var_os(PASSWORD).is_none() => SecretFile::Password(file),
            _ => {
                return Err(ServiceError::Usage(
                    "the restored server fetches its log itself, so it takes the repository's key from a file that it can read: write \
                     --key-file FILE or --password-file FILE"
                        .to_owned(),
                ));
            }
        };
        Ok((word, file))
    }

    /// For how long a proof counts there.
    pub(super) fn backup_proof_valid(&self, at: &Where) -> Result<Span, ServiceError> {
        let (_, named) = self.backup_named(at.repo.as_deref())?;
        Ok(named.and_then(|named| named.proof_valid).unwrap_or(PROOF_VALID))
    }

    /// The URL or path, and the estate's entry if it is one of its repositories.
    fn backup_named(&self, repo: Option<&str>) -> Result<(String, Option<Named>), ServiceError> {
        let Some(repo) = repo else { return self.only_repository() };
        // What has a slash is no name, and needs no estate.
        if repo.contains('/') || repo.contains(':') {
            return Ok((repo.to_owned(), None));
        }
        let named = self.repositories()?.into_iter().find(|(name, _)| name.as_str() == repo).map(|(_, named)| named);
        Ok(match named {
            Some(named) => (named.url.clone(), Some(named)),
            None => (repo.to_owned(), None),
        })
    }

    /// Without `--repo`: the estate's, if it has one and no more.
    fn only_repository(&self) -> Result<(String, Option<Named>), ServiceError> {
        let repositories = self.repositories()?;
        let names: Vec<String> = repositories.keys().map(ToString::to_string).collect();
        let mut all = repositories.into_values();
        match (all.next(), all.next()) {
            (Some(named), None) => Ok((named.url.clone(), Some(named))),
            (None, _) => Err(ServiceError::Usage(
                "which repository? Write --repo URL or --repo PATH, or name one under `repositories` in the estate".to_owned(),
            )),
            _ => Err(ServiceError::Usage(format!("which repository? Write --repo NAME; the estate has: {}", names.join(", ")))),
        }
    }

    fn backup_aws(&self, region: &RegionName) -> Result<Option<Aws>, ServiceError> {
        let estate = self.estate()?;
        let known = estate.regions.get(region);
        let known = known.ok_or_else(|| ServiceError::Usage(format!("its region `{region}` is not in the estate's `regions`")))?;
        Ok(known.aws.clone())
    }
}

fn unlock(at: &Where, named: Option<&Named>) -> Result<Unlock, ServiceError> {
    if let Some(file) = &at.key_file {
        return key_file(file);
    }
    if let Some(file) = &at.password_file {
        return passphrase(&SecretRef::File(file.clone()), "`--password-file`");
    }
    if std::env::var_os(PASSWORD).is_some() {
        return passphrase(&SecretRef::Env(PASSWORD.to_owned()), "Muster");
    }
    match named.and_then(|named| named.password.as_ref()) {
        Some(reference) => passphrase(reference, "the estate"),
        None => Err(ServiceError::Usage(format!(
            "a repository is opened with its password or key file: write --password-file FILE or --key-file FILE, set {PASSWORD}, or give the repository a `password` in the estate"
        ))),
    }
}

/// `who` names it.
pub(super) fn passphrase(reference: &SecretRef, who: &str) -> Result<Unlock, ServiceError> {
    Ok(Unlock::Passphrase(secrets::read_for(reference, who)?))
}

/// The bytes of a key file as they are: it is no text.
pub(super) fn key_file(path: &Path) -> Result<Unlock, ServiceError> {
    let fail = |why: &dyn std::fmt::Display| ServiceError::Usage(format!("the key file {} cannot be read: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
    if size > LARGEST_KEY {
        return Err(fail(&format!("it has {size} bytes, more than any key ({LARGEST_KEY}); is it the right file?")));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
    Ok(Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(bytes)))))
}
