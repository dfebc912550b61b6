//! Names and identifiers as types of their own, so that a region is never passed where a run is meant.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )+};
}

names! {
    /// A region of the estate, by the estate's own name for it (`east`), not the provider's.
    RegionName,
    /// What recovers as one.
    ServiceName,
    /// A database of the estate.
    DatabaseName,
    /// A bucket of the estate, by the estate's name for it, whatever it is called in each region.
    BucketName,
    /// An endpoint of the estate: a DNS name with a target in each region.
    EndpointName,
    /// A repository of backups.
    RepositoryName,
    /// Somebody who approves and accepts.
    PersonName,
    /// The name in a runbook's `runbook:` key.
    RunbookName,
    /// The name in a drill's `drill:` key.
    DrillName,
    /// A step, unique within its runbook.
    StepId,
    /// A run or a drill: a UUIDv7 in text. Each has a chain of events of its own.
    RunId,
}
