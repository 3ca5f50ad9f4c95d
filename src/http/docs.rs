//! The page to read the API and try it. It is one file with everything in it, so that it works
//! without the internet; the policy lets it talk to this server only.

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;

/// The page, its style and its script; each file is served only through [`page`].
const HTML: &str = include_str!("docs.html");

/// Nothing from elsewhere, nothing inside another page. The one style and the one script stand in
/// the page itself, which holds no text from outside: what it shows is set as text, never as markup.
const POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; \
                      script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /docs`
#[utoipa::path(get, path = "/docs", tag = "operation", operation_id = "getDocs", summary = "This description as a page",
    responses((status = 200, description = "A page to read this description and try it", content_type = "text/html",
               body = String)))]
pub(crate) async fn page() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, HTML)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_refers_to_nothing_outside_this_server() {
        for foreign in ["http:", "https:", "//cdn", "src=", "@import", "url(", "<link", "innerHTML", "eval("]
        {
            assert!(!HTML.contains(foreign), "{foreign}");
        }
        let links: Vec<_> = HTML.split("href").skip(1).collect();
        assert!(
            links
                .iter()
                .all(|link| link.trim_start_matches(['=', ':', ' ', '"', '\'']).starts_with("openapi.json"))
        );
    }
}
