//! Builds again when a migration is added; the ones that are there are followed by the macro.

#[allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]
fn main() {
    println!("cargo:rerun-if-changed=../sql");
}
