use std::rc::Rc;

use aqueduct::{Event, Router};

async fn handle(event: Event) {
    let kind = Rc::new(event.kind);
    std::future::ready(()).await;
    drop(kind);
}

fn main() {
    let _: Router = Router::new().on("order.placed", handle);
}
