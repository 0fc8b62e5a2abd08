//! The page's files, inside the binary.

/// One file of the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    /// Its media type.
    pub(super) media_type: &'static str,
    /// Its bytes.
    pub(super) content: &'static str,
}

/// The file that is served at `path`.
pub(super) fn find(path: &str) -> Option<File> {
    let (media_type, content) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("page/index.html")),
        "/style.css" => ("text/css; charset=utf-8", include_str!("page/style.css")),
        "/app.js" => (
            "text/javascript; charset=utf-8",
            include_str!("page/app.js"),
        ),
        "/favicon.svg" => ("image/svg+xml", include_str!("page/favicon.svg")),
        _ => return None,
    };
    Some(File {
        media_type,
        content,
    })
}
