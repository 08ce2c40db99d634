//! What the compiler says to newcomers: the saved messages name the fix.

#[test]
fn mistakes_in_handlers_and_layers_are_explained_by_the_compiler() {
    trybuild::TestCases::new().compile_fail("tests/compile/*.rs");
}
