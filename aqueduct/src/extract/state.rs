//! What the service or its layers hand to handlers.

use std::any::{Any, type_name};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::{FromCall, Rejection};
use crate::call::Call;
use crate::error::Error;

/// The state given to [`Router::with_state`](crate::Router::with_state), or a part of it, cloned.
///
/// `T` is the whole state or anything that is [`FromState`] of it. It is cloned for every attempt: put what is costly to
/// clone into an `Arc`.
///
/// ```
/// use aqueduct::{Event, Router, State};
/// use std::sync::Arc;
///
/// struct Prices(Vec<u64>);
///
/// async fn handle(State(prices): State<Arc<Prices>>, event: Event) {
///     println!("{} prices, {}", prices.0.len(), event.id);
/// }
///
/// let app: Router = Router::new().on("order.placed", handle).with_state(Arc::new(Prices(vec![])));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State<T>(pub T);

impl<T: FromState<S> + Send, S: Sync> FromCall<S> for State<T> {
    async fn from_call(_: &Call, state: &S) -> Result<Self, Rejection> {
        Ok(Self(T::from_state(state)))
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for State<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// What [`State`] can take from a router's state `S`: the state itself, or a part for which you implement this.
///
/// ```
/// use aqueduct::extract::FromState;
///
/// #[derive(Clone)]
/// struct Mailer;
/// #[derive(Clone)]
/// struct App { mailer: Mailer }
///
/// impl FromState<App> for Mailer {
///     fn from_state(app: &App) -> Self {
///         app.mailer.clone()
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler asks for `State<{Self}>` and the router's state is `{S}`",
    label = "no such state in this router",
    note = "give the router its state before it is served: `.with_state(state)`, where `state` is a `{Self}`",
    note = "for a part of the state implement `FromState<{S}>` for `{Self}`"
)]
pub trait FromState<S> {
    /// The part.
    fn from_state(state: &S) -> Self;
}

impl<T: Clone> FromState<T> for T {
    fn from_state(state: &T) -> T {
        state.clone()
    }
}

/// Out of a state that is shared. Having two ways to get a `T` also keeps the compiler from guessing the router's state,
/// so that a forgotten `with_state` is reported in the words above.
impl<T: Clone> FromState<Arc<T>> for T {
    fn from_state(state: &Arc<T>) -> T {
        T::clone(state)
    }
}

/// A value that a layer has left in [`Call::extensions_mut`], cloned.
///
/// The attempt fails if there is none: put the layer around this route. Ask for `Option<Extension<T>>` where it may be
/// missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extension<T>(pub T);

impl<T: Any + Clone + Send + Sync, S: Sync> FromCall<S> for Extension<T> {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        extension(call).ok_or_else(|| {
            Rejection::Failed(Error::msg(format!(
                "no layer of this route has left a `{}` in the call's extensions",
                type_name::<T>()
            )))
        })
    }
}

impl<T: Any + Clone + Send + Sync, S: Sync> FromCall<S> for Option<Extension<T>> {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        Ok(extension(call))
    }
}

fn extension<T: Any + Clone>(call: &Call) -> Option<Extension<T>> {
    call.extensions().get().cloned().map(Extension)
}
