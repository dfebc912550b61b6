//! An object store by the words that a person writes: `s3://BUCKET/PREFIX`, a path, or `file:///PATH`.

use super::directory::Directory;
use super::port::{ObjectWrite, PortError, PortResult};
use crate::model::estate::Aws;
use std::{path::PathBuf, sync::Arc};

/// What such words name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The prefix is empty or ends with a slash.
    S3 {
        bucket: String,
        prefix: String,
    },
    Directory(PathBuf),
}

/// Opens it; nothing is contacted or made yet. `aws` says how S3 is reached, if the estate does; else the AWS SDK's own
/// configuration does (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL_S3 and so on).
pub fn open(text: &str, aws: Option<&Aws>) -> PortResult<Arc<dyn ObjectWrite>> {
    match parse(text)? {
        Place::Directory(path) => Ok(Arc::new(Directory::new(path))),
        Place::S3 { bucket, prefix } => s3(bucket, prefix, aws),
    }
}

/// Is it a bucket, and not a directory?
pub fn is_bucket(text: &str) -> bool {
    matches!(parse(text), Ok(Place::S3 { .. }))
}

#[cfg(feature = "aws")]
fn s3(bucket: String, prefix: String, aws: Option<&Aws>) -> PortResult<Arc<dyn ObjectWrite>> {
    let clients = Arc::new(super::aws::AwsClients::new(aws.cloned()));
    Ok(Arc::new(super::s3::S3Bucket::new(clients, bucket, prefix)))
}

#[cfg(not(feature = "aws"))]
fn s3(bucket: String, prefix: String, _aws: Option<&Aws>) -> PortResult<Arc<dyn ObjectWrite>> {
    let place = format!("s3://{bucket}/{prefix}");
    Err(PortError::Config(format!("this Muster was built without AWS, so it cannot reach {place}: build it with `--features aws`")))
}

fn parse(text: &str) -> PortResult<Place> {
    let refuse = |why: &str| Err(PortError::Config(format!("`{text}` is no place for objects: {why}")));
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            return refuse("write s3://BUCKET/PREFIX; the server is named by the estate or by AWS_ENDPOINT_URL_S3");
        }
        if prefix.split('/').any(str::is_empty) && !prefix.is_empty() {
            return refuse("its prefix has an empty part between slashes");
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        return Ok(Place::S3 { bucket: bucket.to_owned(), prefix });
    }
    if text.starts_with("file:") {
        let path = url::Url::parse(text).ok().filter(|url| url.query().is_none() && url.fragment().is_none());
        return match path.filter(|_| text.starts_with("file:///")).and_then(|url| url.to_file_path().ok()) {
            Some(path) => Ok(Place::Directory(path)),
            None => refuse("write file:///PATH, with three slashes and %3F or %23 for ? or #, or the path alone"),
        };
    }
    if text.starts_with("http://") || text.starts_with("https://") || text.starts_with("s3:") {
        return refuse("write s3://BUCKET/PREFIX, and name the server in the estate (`endpoints: { s3: URL }`) or by AWS_ENDPOINT_URL_S3");
    }
    if text.contains("://") {
        return refuse("Muster knows s3://BUCKET/PREFIX, file:///PATH, and paths");
    }
    if text.is_empty() {
        return refuse("write s3://BUCKET/PREFIX or a path");
    }
    Ok(Place::Directory(PathBuf::from(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_or_a_path() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        for (text, want) in [
            ("s3://dr-vault", s3("dr-vault", "")),
            ("s3://dr-vault/", s3("dr-vault", "")),
            ("s3://dr-vault/scoring", s3("dr-vault", "scoring/")),
            ("s3://dr-vault/a/b//", s3("dr-vault", "a/b/")),
            ("file:///srv/a%20b", Place::Directory("/srv/a b".into())),
            ("vault", Place::Directory("vault".into())),
            ("../a:b", Place::Directory("../a:b".into())),
            ("/srv/vault", Place::Directory("/srv/vault".into())),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused_with_what_to_write() {
        for (text, want) in [
            ("", "s3://BUCKET/PREFIX or a path"),
            ("s3://", "write s3://BUCKET/PREFIX"),
            ("s3:///x", "write s3://BUCKET/PREFIX"),
            ("s3://b//x", "empty part"),
            ("s3://host:9000/b", "AWS_ENDPOINT_URL_S3"),
            ("s3:host/b", "AWS_ENDPOINT_URL_S3"),
            ("https://host/b", "AWS_ENDPOINT_URL_S3"),
            ("file://srv/x", "file:///PATH"),
            ("file:x", "file:///PATH"),
            ("file:///a?b", "%3F"),
            ("sftp://host/x", "Muster knows"),
        ] {
            match parse(text) {
                Err(PortError::Config(said)) => assert!(said.contains(want), "{said} lacks {want}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
