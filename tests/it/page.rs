//! The page at `/`: served whole, under a policy that keeps it to its own server. What it does is
//! the browser test's business.

use crate::support::service::{LIMITS, client};
use imgclass::api::{ApiState, app};
use poem::test::TestClient;

#[tokio::test]
async fn the_page_and_its_files_are_served_even_while_the_model_loads() {
    let client = TestClient::new(app(ApiState::loading(LIMITS)));
    let cases = [
        ("/", "text/html; charset=utf-8"),
        ("/?from=elsewhere", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/example.jpg", "image/jpeg"),
    ];
    for (path, content_type) in cases {
        let response = client.get(path).send().await;
        response.assert_status_is_ok();
        response.assert_content_type(content_type);
        response.assert_header("x-content-type-options", "nosniff");
    }
}

#[tokio::test]
async fn the_page_may_load_nothing_from_elsewhere_and_asks_for_nothing_from_elsewhere() {
    let response = client().get("/").send().await;
    let policy = response
        .0
        .header("content-security-policy")
        .expect("a policy")
        .to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    for loose in ["unsafe-inline", "unsafe-eval", "http", "*", "data:"] {
        assert!(!policy.contains(loose), "{loose} in {policy}");
    }
    let page = response.0.into_body().into_string().await.expect("a page");
    for outside in [
        "src=\"http",
        "href=\"http",
        "src=\"//",
        "<style",
        "style=\"",
        "onclick=",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    let style = client().get("/page.css").send().await;
    let style = style.0.into_body().into_string().await.expect("a style");
    assert!(!style.contains("url(") && !style.contains("@import"));
}
