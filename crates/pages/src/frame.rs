//! What both pages share: head, look, figures at the top.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// How something ended, as a colour says it. The words are always there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Bad,
    Neutral,
}

impl Mood {
    pub(crate) const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Neutral => "neutral",
        }
    }
}

/// One figure at the top of a page.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    /// What the figure is made of.
    pub(crate) note: String,
}

/// A whole page.
pub(crate) fn page(title: &str, badge: (&str, Mood), facts: &[(&str, String)], body: &Markup) -> String {
    let (badge, mood) = badge;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    h1 { (title) " " span class={ "badge " (mood.class()) } { (badge) } }
                    dl { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } }
                }
                (body)
            }
        }
    }
    .into_string()
}

/// The figures, side by side.
pub(crate) fn figures(figures: &[Figure]) -> Markup {
    html! {
        section class="figures" {
            @for figure in figures {
                div {
                    span class="name" { (figure.name) }
                    strong { (figure.value) }
                    span class="note" { (figure.note) }
                }
            }
        }
    }
}

/// A section with a heading; what it holds is explained in a sentence.
pub(crate) fn section(heading: &str, explained: &str, content: &Markup) -> Markup {
    html! { section { h2 { (heading) } p class="explained" { (explained) } (content) } }
}
