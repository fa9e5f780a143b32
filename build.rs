//! Builds with the feature `cuda` take NVIDIA's driver library when they start, if it is there: see
//! `cuda/driver.c`. Nothing else is done here.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    driver();
}

#[cfg(feature = "cuda")]
fn driver() {
    println!("cargo::rerun-if-changed=cuda/driver.c");
    // Elsewhere the toolkit's import library stands for the driver.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        cc::Build::new()
            .file("cuda/driver.c")
            .warnings_into_errors(true)
            // All of it, whether or not the linker has met a use of it yet: it must come before the
            // library that it stands for.
            .link_lib_modifier("+whole-archive")
            .compile("imgclass_cuda_driver");
    }
}
