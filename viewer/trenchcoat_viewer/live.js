// Has a page follow what it shows: told of a new version, it takes the new content over, as it was unfolded and scrolled.
(() => {
  const version = () => document.querySelector('meta[name="trenchcoat-version"]').content;
  const parts = ["title", "header", "nav", "main", "footer"];
  let busy = false;

  const take = (fresh) => {
    const unfolded = [...document.querySelectorAll("details")].map((item) => item.open);
    const [left, top] = [scrollX, scrollY];
    for (const name of parts) {
      const [was, is] = [document.querySelector(name), fresh.querySelector(name)];
      if (was && is) was.replaceWith(document.adoptNode(is));
    }
    document.querySelectorAll("details").forEach((item, place) => { item.open = unfolded[place] ?? false; });
    document.querySelector('meta[name="trenchcoat-version"]').content =
      fresh.querySelector('meta[name="trenchcoat-version"]').content;
    scrollTo(left, top);
  };

  const look = async () => {
    if (busy) return;
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.status === 401 || answer.status === 404) location.reload();
      else if (answer.ok) take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } finally {
      busy = false;
    }
  };

  const listen = () => {
    const news = new EventSource(location.pathname.replace(/\/$/, "") + "/updates");
    news.onmessage = (event) => { if (event.data !== version()) look(); };
    news.onerror = () => {
      if (news.readyState === EventSource.CLOSED) {  // refused, not merely interrupted
        look();
        setTimeout(listen, 5000);
      }
    };
  };
  listen();
})();
