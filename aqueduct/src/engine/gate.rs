//! A gate in front of every task of an instance, so that the simulator can stop a process as SIGSTOP does, or kill it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Lets the tasks of one simulated process be polled, or not.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    door: Door,
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Door {
    #[default]
    Open,
    Frozen,
    Dead,
}

impl Gate {
    /// Stops polling, as SIGSTOP does; time goes on.
    pub fn freeze(&self) {
        let mut state = self.0.lock();
        if state.door == Door::Open {
            state.door = Door::Frozen;
        }
    }

    /// Goes on, as SIGCONT does.
    pub fn thaw(&self) {
        let mut state = self.0.lock();
        if state.door == Door::Frozen {
            state.door = Door::Open;
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Stops polling for ever, as kill -9 does.
    pub fn kill(&self) {
        self.0.lock().door = Door::Dead;
    }

    /// True after [`kill`](Self::kill).
    pub fn is_dead(&self) -> bool {
        self.0.lock().door == Door::Dead
    }

    /// The future, polled only while the gate is open.
    pub fn wrap<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let gate = self.clone();
        let mut future = Box::pin(future);
        std::future::poll_fn(move |cx| gate.poll(future.as_mut(), cx))
    }

    fn poll<F: Future>(&self, future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut state = self.0.lock();
        match state.door {
            Door::Open => {}
            Door::Frozen => {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Door::Dead => return Poll::Pending,
        }
        drop(state);
        future.poll(cx)
    }
}
