"use strict";
course.view("museum", {
  title: "Museum",
  show(main) {
    main.append(course.element("pre", {}, course.data("museum").matrix));
  },
});
