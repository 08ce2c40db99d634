use aqueduct::{Router, State};

#[derive(Clone)]
struct Prices;

async fn handle(_: State<Prices>) {}

fn serve(_: Router) {}

fn main() {
    serve(Router::new().on("order.placed", handle));

    let app = Router::new().on("order.placed", handle);
    serve(app);
}
