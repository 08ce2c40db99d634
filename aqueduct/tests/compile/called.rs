use aqueduct::{Event, Router};

async fn handle(_: Event) {}

fn main() {
    let _: Router = Router::new().on("order.placed", handle(Event::default()));
}
