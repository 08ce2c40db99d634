//! The data as Protobuf.

use super::{FromCall, Rejection};
use crate::call::Call;

/// The event's data, read as a message of Protobuf whatever its content type says.
///
/// Data that is no such message is a permanent failure, so the event becomes a dead letter at once; the error names the event and
/// the field. To treat it otherwise ask for `Result<Proto<T>, Error>`.
///
/// The trap: Protobuf does not say what it is, and bytes of another type may be read as nonsense. So route by the type.
///
/// ```
/// use aqueduct::{Proto, Result, Router};
///
/// #[derive(prost::Message)]
/// struct Order {
///     #[prost(string, tag = "1")]
///     sku: String,
/// }
///
/// async fn reserve(Proto(order): Proto<Order>) -> Result<()> {
///     println!("{}", order.sku);
///     Ok(())
/// }
/// # let app: Router =
/// Router::new().on("acme.Order", reserve);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proto<T>(pub T);

impl<T: prost::Message + Default, S: Sync> FromCall<S> for Proto<T> {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        match call.event().proto() {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Rejection::Failed(error.permanent())),
        }
    }
}
