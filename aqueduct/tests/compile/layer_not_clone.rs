use std::task::{Context, Poll};

use aqueduct::{Call, Next, Router};
use tower::{Layer, Service};

struct Counting(Next);

impl Service<Call> for Counting {
    type Response = <Next as Service<Call>>::Response;
    type Error = <Next as Service<Call>>::Error;
    type Future = <Next as Service<Call>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.0.call(call)
    }
}

struct CountingLayer;

impl Layer<Next> for CountingLayer {
    type Service = Counting;

    fn layer(&self, next: Next) -> Counting {
        Counting(next)
    }
}

fn main() {
    let _: Router = Router::new().on("order.placed", async || ()).layer(CountingLayer);
}
