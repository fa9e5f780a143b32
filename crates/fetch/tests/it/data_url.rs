//! `data:image/...;base64,` URLs that the fetcher accepts, refuses, or finds too large.

use std::sync::LazyLock;

use imgclass_fetch::{FetchConfig, FetchError, Fetcher};
use proptest::prelude::*;

/// Describes an outcome in words, for tables.
fn words(result: &Result<bytes::Bytes, FetchError>) -> String {
    match result {
        Ok(bytes) => format!("{} bytes", bytes.len()),
        Err(FetchError::TooLarge { limit }) => format!("over {limit}"),
        Err(FetchError::InvalidDataUrl(fault)) => format!("{fault:?}"),
        Err(other) => other.to_string(),
    }
}

/// A fetcher whose limit is 6 bytes.
static FETCHER: LazyLock<Fetcher> = LazyLock::new(|| {
    let config = FetchConfig {
        max_bytes: 6,
        ..FetchConfig::default()
    };
    Fetcher::new(config).unwrap()
});

#[tokio::test]
async fn every_data_url_gives_its_bytes_or_its_error() {
    let long_header = format!("data:image/png;{};base64,aW1hZ2U=", "a".repeat(300));
    let bare = "QUJD".repeat(5000);
    #[rustfmt::skip] // one row for each case
    let table = [
        ("data:image/png;base64,aW1hZ2U=", "5 bytes"),
        ("DATA:IMAGE/PNG;BASE64,aW1hZ2U=", "5 bytes"),
        ("data:;base64,aW1hZ2U=", "5 bytes"),
        ("data:application/octet-stream;base64,aW1hZ2U=", "5 bytes"),
        ("data:Application/Octet-Stream;name=a.png;base64,aW1hZ2U=", "5 bytes"),
        ("data:image/png;base64,-_-_", "3 bytes"),
        ("data:image/svg+xml;charset=utf-8;base64,aW1hZ2U=", "5 bytes"),
        ("data:image/png;base64,aW1hZ2U", "5 bytes"),
        ("data:image/png;base64,aW1hZ2Uh", "6 bytes"),
        ("data:image/png;base64,+/+/", "3 bytes"),
        ("data:image/png;base64,%2B%2f%2B%2F", "3 bytes"),
        ("data:image/png;base64,aW1hZ2U%3D", "5 bytes"),
        ("data:image/png;base64,aW1h\r\n Z2U=\n", "5 bytes"),
        ("data:image/png;base64,aW1h%0AZ2U=", "5 bytes"),
        // The limit of 6 bytes; whitespace does not count.
        ("data:image/png;base64,aW1hZ2UhIQ==", "over 6"),
        ("data:image/png;base64,aW1hZ2UhIQ", "over 6"),
        ("data:image/png;base64,aW1h      Z2Uh", "6 bytes"),
        ("data:image/png;base64,%61%57%31%68%5A%32%55%68%49%51", "over 6"),
        // What the header may look like.
        ("data:", "Comma"),
        ("data:image/png;base64", "Comma"),
        (long_header.as_str(), "Comma"),
        ("data:,image", "NotBase64"),
        ("data:text/html;base64,aW1hZ2U=", "MediaType"),
        ("data:image/;base64,aW1hZ2U=", "MediaType"),
        ("data:imagepng;base64,aW1hZ2U=", "MediaType"),
        ("data:image/png,image", "NotBase64"),
        ("data:image/png;base64;x=1,aW1hZ2U=", "NotBase64"),
        ("data:image/png;utf8,image", "NotBase64"),
        ("data:image/png;base64,", "Empty"),
        ("data:image/png;base64, ", "Empty"),
        // What the data may look like.
        ("data:image/png;base64,-_+/", "Base64"),
        ("data:application/octet-streams;base64,aW1hZ2U=", "MediaType"),
        ("data:image/png;base64,aW1h,", "Base64"),
        ("data:image/png;base64,a", "Base64"),
        ("data:image/png;base64,=", "Base64"),
        ("data:image/png;base64,aW=h", "Base64"),
        ("data:image/png;base64,aW1h#f", "Base64"),
        ("data:image/png;base64,bild\u{fc}", "Base64"),
        ("data:image/png;base64,%", "Percent"),
        ("data:image/png;base64,aW1h%2", "Percent"),
        ("data:image/png;base64,%zz", "Percent"),
        // Base64 without all that.
        ("/9j/4AAQSkZJRgABAQAAAQABAAD", "Scheme"),
        ("iVBORw0KGgoAAAANSUhEUgAA", "Scheme"),
        (bare.as_str(), "Scheme"),
        ("aW1hZ2U=", "image URL unusable: refused: not a URL: relative URL without a base"),
        // With a blank before it, this is not a data URL, and nothing else allows the scheme.
        (" data:image/png;base64,aW1hZ2U=", "image URL unusable: refused: scheme \"data\" is neither http nor https"),
    ];
    for (url, expected) in table {
        let result = FETCHER.fetch(url).await;
        assert_eq!(words(&result), expected, "{url:?}: {result:?}");
    }
    let wrapped = FETCHER.fetch("data:image/png;base64,aW1h\tZ2U%3d").await;
    assert_eq!(wrapped.unwrap(), "image");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_data_url_makes_the_fetcher_panic(rest in ".*", tail in "[%A-Za-z0-9+/= \\n]{0,12}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(FETCHER.fetch(&format!("data:{rest}")));
        if let Ok(bytes) = runtime.block_on(FETCHER.fetch(&format!("data:image/png;base64,{tail}"))) {
            prop_assert!((1..=6).contains(&bytes.len()));
        }
    }
}
