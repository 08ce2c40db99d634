//! Bugs to be planted, in test builds only, so that the checker can show that it finds them.

/// A bug that the simulator must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    AckBeforeParking,
    NextDuringRetry,
    HighestFloor,
    OpenedDuringAppend,
    DeadLetterNotAwaited,
    HeadWithoutTail,
    FetchBeforeLoad,
}
