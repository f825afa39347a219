const specs = JSON.parse(document.getElementById("specs").textContent);
const options = { renderer: "svg", actions: false, ast: true, defaultStyle: false, mode: "vega-lite" };
const drawn = [...document.querySelectorAll("[data-chart]")].map(place =>
  vegaEmbed(place, specs[place.dataset.chart], options).catch(error => {
    place.textContent = "This chart could not be drawn: " + error.message;
    console.error(error);
  }));
Promise.all(drawn).then(() => { document.documentElement.dataset.charts = "drawn"; });
