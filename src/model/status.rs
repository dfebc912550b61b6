//! The statuses of runs and steps: an override never becomes a success.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    #[default]
    Pending,
    Ready,
    WaitingApproval,
    Running,
    Succeeded,
    SucceededWithWarning,
    Failed,
    FailedIgnored,
    TimedOut,
    Skipped,
    Cancelled,
    Indeterminate,
    Undone,
}

impl StepStatus {
    /// Nothing more happens to the step by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Ready | Self::WaitingApproval | Self::Running | Self::Indeterminate)
    }
    /// A step that needs this one may start.
    #[must_use]
    pub fn satisfies(self) -> bool {
        matches!(self, Self::Succeeded | Self::SucceededWithWarning | Self::FailedIgnored | Self::Skipped)
    }
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::WaitingApproval => "waiting_approval",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::SucceededWithWarning => "succeeded_with_warning",
            Self::Failed => "failed",
            Self::FailedIgnored => "failed_ignored",
            Self::TimedOut => "timed_out",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::Indeterminate => "indeterminate",
            Self::Undone => "undone",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Planned,
    Running,
    Paused,
    WaitingApproval,
    Succeeded,
    Failed,
    Aborted,
    Indeterminate,
}

impl RunStatus {
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted)
    }
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::WaitingApproval => "waiting_approval",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::Indeterminate => "indeterminate",
        }
    }
}
