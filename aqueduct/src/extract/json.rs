//! The data as JSON.

use serde_core::de::DeserializeOwned;

use super::{FromCall, Rejection};
use crate::call::Call;

/// The event's data, read as JSON whatever its content type says.
///
/// Data that does not fit `T` is a permanent failure, so the event becomes a dead letter at once; the error names the
/// event and the line and column. To treat it otherwise ask for `Result<Json<T>, Error>`.
///
/// ```
/// use aqueduct::{Json, Result};
/// use std::collections::BTreeMap;
///
/// async fn handle(Json(stock): Json<BTreeMap<String, u32>>) -> Result<()> {
///     println!("{} kinds", stock.len());
///     Ok(())
/// }
/// # let app: aqueduct::Router = aqueduct::Router::new().on("stock.counted", handle);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send, S: Sync> FromCall<S> for Json<T> {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        match call.event().json() {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Rejection::Failed(error.permanent())),
        }
    }
}
